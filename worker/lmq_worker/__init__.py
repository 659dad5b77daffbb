"""The worker: takes leases from a broker, has a model server carry them out, and brings the results back."""

__version__ = "0.1.0"
