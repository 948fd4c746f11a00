"""Upstream's own tests of connectors, run against ours: `make test-upstream`.

source.py fetches vLLM's source distribution, whose tests come with it, and checks it against a digest; nothing of it is
kept here. plugin/ is on the path of the pytest that runs them, in the engine's venv: its helpers make our connector
where upstream's make theirs, and store_cases.py says which tests take part. run.py starts a node and the run, and says
what came of it.
"""
