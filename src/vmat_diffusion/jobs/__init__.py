"""Many pieces of work at the same time: on this computer, on a cluster, or several plans of one case."""
