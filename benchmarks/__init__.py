"""Commands beside the package: timings, tables and pictures of finished runs, toys, torture, a trial of the wheel.
`python -m benchmarks.NAME --help` says what each prints."""
