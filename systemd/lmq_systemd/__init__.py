"""The systemd units, as data: `lmq systemd install` copies them from here.

Only unit files belong in this package, no code. Whoever needs one reads it with
`importlib.resources.files("lmq_systemd").joinpath("lmq-broker.service").read_text()`, which finds it
in a checkout, an editable install and a wheel alike.
"""
