"""Who drives which replica, in the memory store."""

from dataclasses import dataclass

from gateway.ports import Seat


@dataclass(slots=True)
class _Lease:
    epoch: int
    expiry_s: float
    gateway: str | None
    """None: it was given up."""
    standing: bytes = b""


class Leases:
    def __init__(self) -> None:
        self._of: dict[str, _Lease] = {}

    def elect(self, replica: str, gateway: str, expiry_s: float, now_s: float) -> int | None:
        last = self._of.get(replica)
        if last and last.expiry_s > now_s and last.gateway != gateway:
            return None
        epoch = max(last.epoch + 1 if last else 1, int(now_s * 1e6))
        self._of[replica] = _Lease(epoch, expiry_s, gateway, last.standing if last else b"")
        return epoch

    def holds(self, replica: str, epoch: int, now_s: float) -> bool:
        lease = self._of.get(replica)
        return lease is not None and lease.epoch == epoch and lease.expiry_s > now_s

    def renew(self, replica: str, epoch: int, expiry_s: float, standing: bytes) -> bool:
        lease = self._of.get(replica)
        if lease is None or lease.epoch != epoch or lease.gateway is None:
            return False
        lease.expiry_s, lease.standing = expiry_s, standing
        return True

    def resign(self, replica: str, epoch: int, now_s: float) -> None:
        lease = self._of.get(replica)
        if lease is not None and lease.epoch == epoch:
            lease.expiry_s, lease.gateway = min(lease.expiry_s, now_s), None

    def live(self, now_s: float) -> dict[str, Seat]:
        return {
            replica: Seat(lease.gateway, lease.standing)
            for replica, lease in self._of.items()
            if lease.expiry_s > now_s and lease.gateway is not None
        }
