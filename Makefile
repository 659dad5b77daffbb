# The front door. `make` alone prints what there is; CI calls the same targets.
.DEFAULT_GOAL := help
.PHONY: help
help:  ## print this list
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
