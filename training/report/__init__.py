"""report.json and report.html: what a run or an evaluation found, for programs and for people.

figures.py    groups and rewards -> the numbers behind the plots
findings.py   the report's numbers -> sentences
svg.py        axes and marks;  plots.py  the plots
page.py       the report -> one HTML file that needs nothing else
"""
