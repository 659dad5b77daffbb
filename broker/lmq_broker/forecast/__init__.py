"""The real core on modelled endpoints under a clock of its own: what a policy would do with given traffic."""
