"""Goreprox beside its peers, in interleaved rounds on one machine: `python -m benchmarks`.

plan ──> rounds: group by group, side by side ──> results ──> verdicts, tables, charts

sides, peers   what is compared, and how each is started
processes      programs that a measurement starts: their end, their CPU time, their memory
targets        nginx, and a small server of our own (`echo`) for what nginx cannot do
relay          a long, slow or broken path, in a process of its own
load           what is done to a side, and how it is timed
groups         what is measured together, while a side runs
rows           each figure, with the floor and the goal that it has to reach
verdicts       whether it does
report         JSON, tables, charts
"""
