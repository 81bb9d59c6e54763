"""Goreprox beside its peers, in interleaved rounds on one machine: `python -m benchmarks`.

plan ──> rounds: group by group, side by side ──> results ──> verdicts, tables, charts

sides, peers   what is compared, and how each is started
processes      programs that a measurement starts, their CPU time and memory
targets        nginx, and a small server (`echo`) for what nginx cannot do
relay          a long, slow or broken path, in its own process
load           what is done to a side, and how it is timed
groups         what is measured together, while a side runs
rows           each figure, with its floor and its goal
verdicts       whether these are reached
report         JSON, tables, charts

On their own: `behaviour` (what passes through a tunnel), `bare` (what Python and ZeroMQ can carry), `picture` (the demo
as an animation).
"""
