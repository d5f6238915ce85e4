"""Measure everything but the table of metrics, which takes hours, and print it."""

from __future__ import annotations

from benchmarks import (
    churn,
    claims,
    end_to_end,
    memory,
    quality,
    selection,
    serve,
    service_claim,
    service_gateway,
    service_overhead,
    serving,
    training,
)
from benchmarks.machine import describe
from benchmarks.rows import print_rows
from benchmarks.service.deployment import end_in_order

end_in_order()
print(describe(), end="\n\n", flush=True)
for benchmark in (
    *(selection, training, end_to_end, memory),
    *(serve, serving, churn),
    *(service_overhead, service_claim, service_gateway, claims),
):
    print(f"## {(benchmark.__doc__ or '').splitlines()[0]}\n", flush=True)
    print_rows(benchmark.main())
    print(flush=True)
print(f"## {(quality.__doc__ or '').splitlines()[0]}\n")
quality.print_table()
