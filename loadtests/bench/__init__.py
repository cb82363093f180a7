"""`make bench`: the service against what a user has today, the offline limit and the roofline."""
