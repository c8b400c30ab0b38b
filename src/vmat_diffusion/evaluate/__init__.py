"""How good a dose is: dose-volume histograms and clinical goals."""
