"""The benchmark suite of fastxent: against the machine's limit, and against every peer that is installed.

``python -m bench`` writes a report, ``pytest bench`` runs single cases. How it works:

cases.py      what is measured: shapes, dtypes, options, and the data made from them
baselines.py  the peers, each in its best form
subject.py    fastxent's own calls, with the same interface as a peer
measure.py    interleaved timing ("races") and the statistics of paired ratios
answers.py    the oracle that every timed answer is compared with
bandwidth.py  what the memory can do: the limit of every large case
worker.py     a child process with another environment (instruction set), or measuring peak memory
suites.py     which races make up the report
bars.py       the bars, and whether they are met
report.py, plots.py, compare.py    Markdown, PNG, and the comparison with an earlier run
"""
