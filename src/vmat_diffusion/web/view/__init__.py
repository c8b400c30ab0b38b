"""What a person looks at of a planning run: planes, contours, histograms, beams, goals and checks.

Pure functions of a run's files; `web.viewing` answers requests with them.
"""
