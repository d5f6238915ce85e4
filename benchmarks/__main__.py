"""Run all benchmarks and print their tables; the table of metrics is printed, not run again."""

from __future__ import annotations

from benchmarks.machine import describe
from benchmarks.paper import quality
from benchmarks.rows import print_rows
from benchmarks.service import claim, claims, gateway, neighbours, overhead
from benchmarks.service.deployment import end_in_order
from benchmarks.serving import churn, fan_out, open_load, serve
from benchmarks.speed import end_to_end, memory, selection, training

end_in_order()
print(describe(), end="\n\n", flush=True)
for benchmark in (
    *(selection, training, end_to_end, memory),
    *(serve, fan_out, open_load, churn),
    *(overhead, claim, gateway, claims, neighbours),
):
    print(f"## {(benchmark.__doc__ or '').splitlines()[0]}\n", flush=True)
    print_rows(benchmark.main())
    print(flush=True)
print(f"## {(quality.__doc__ or '').splitlines()[0]}\n")
quality.print_table()
