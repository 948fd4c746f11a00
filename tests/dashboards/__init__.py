"""What an operator looks at, with a real Prometheus: `make test-dashboards`. `make test` has none."""
