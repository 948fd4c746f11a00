"""`make test-upstream`: prints what engine_adapters/README.md says of it, and fails where a test fails."""

import sys

from tests.engines.upstream.run import failed, run, table

results = run()
print(table(results))
sys.exit(1 if failed(results) else 0)
