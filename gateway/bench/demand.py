"""From the options to the workload of each rate."""

import msgspec

from gateway.bench.options import DURATION_S, LoadOptions
from gateway.load import trace
from gateway.load.arrivals import Arrivals, LoadError, Process
from gateway.load.named import WORKLOADS
from gateway.load.workload import Source, TrafficClass, Workload, generate
from gateway.options import SettingsError


def workloads(options: LoadOptions) -> dict[float, Workload]:
    """By rate: as asked for, or the trace's own.  Raises SettingsError."""
    try:
        source: Source = trace.read(options.trace) if options.trace else WORKLOADS[options.workload or ""]
        if options.rates:
            return {rate: _workload(options, source, rate) for rate in options.rates}
        workload = _workload(options, source, None)
        return {workload.rate: workload}
    except LoadError as error:
        raise SettingsError(str(error)) from None


def _workload(options: LoadOptions, source: Source, rate: float | None) -> Workload:
    recorded = source.times(2) is not None
    process = options.arrivals or (Process.TRACE if recorded else Process.POISSON)
    arrivals = Arrivals(process, rate, options.cv)
    made = generate(source, _num_requests(options, source, rate), arrivals, options.seed, options.mix)
    return made.with_classes(tuple(_targets(traffic, options) for traffic in made.classes))


def _num_requests(options: LoadOptions, source: Source, rate: float | None) -> int:
    if options.requests:
        return options.requests
    if rate is None and isinstance(source, trace.Trace) and source.arrival_s is not None:
        if options.duration_s is None:
            return len(source)
        rate = len(source) / source.period_s
    if rate is None:
        raise SettingsError("without a trace's own arrivals a rate is needed: --rate or --rates")
    return max(1, round(rate * (options.duration_s or DURATION_S)))


def _targets(traffic: TrafficClass, options: LoadOptions) -> TrafficClass:
    ttft_s = options.slo_ttft_ms / 1000.0 if options.slo_ttft_ms else traffic.ttft_slo_s
    tpot_s = options.slo_tpot_ms / 1000.0 if options.slo_tpot_ms else traffic.tpot_slo_s
    return msgspec.structs.replace(traffic, ttft_slo_s=ttft_s, tpot_slo_s=tpot_s).scaled(options.slo_scale)
