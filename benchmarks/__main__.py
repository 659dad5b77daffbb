"""`python -m benchmarks`, what `make bench` runs: every benchmark that writes into docs/benchmarks.md."""

from benchmarks.compare import main

if __name__ == "__main__":
    main()
