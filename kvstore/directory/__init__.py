"""Which nodes there are. Discovery says who should be there, the nodes' own pings who is."""
