import sys

from tests.simulation.whole.run import main

sys.exit(main())
