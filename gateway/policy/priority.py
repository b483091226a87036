"""Between classes: each with waiting work gets its share of prefill tokens.  Within a class: earliest virtual
deadline, whose slack is fixed here and whose start the store fixes at put."""

from collections.abc import Collection, Mapping

from gateway.request import ServiceClass


def next_class(waiting: Collection[ServiceClass], served: Mapping[ServiceClass, float]) -> ServiceClass:
    """Whose turn it is: of the classes with waiting work (at least one), the least served for its share."""
    order = list(ServiceClass)
    return min(waiting, key=lambda name: (served.get(name, 0.0), order.index(name)))


def charge(
    served: Mapping[ServiceClass, float],
    waiting: Collection[ServiceClass],
    claimed: ServiceClass,
    tokens: int,
    shares: Mapping[ServiceClass, float],
) -> dict[ServiceClass, float]:
    """The classes' figures after `tokens` of prefill were claimed for one of them.

    Deficit round robin kept as one growing number per class: tokens over share.  A class without waiting work
    is lifted to the claimed one's level, so that nobody saves up turns while idle.
    """
    level = served.get(claimed, 0.0)
    new = {
        name: served.get(name, 0.0) if name in waiting else max(served.get(name, 0.0), level)
        for name in ServiceClass
    }
    new[claimed] = level + tokens / shares[claimed]
    return new
