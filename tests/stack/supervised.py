"""`up` without gateways, over the stand-in engine, to be killed from outside: one line says that it runs."""

import json
import sys
import tempfile
from pathlib import Path

from gateway import local
from tests.stack import standin


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        template = standin.template(Path(folder) / "llm")
        async with local.Stack(model="standin", replicas=2, template=template) as stack:
            pids = {name: stack.pid(name) for name in ("valkey", *stack.tritons)}
            pids |= {f"engine of {triton}": stack.stub_pid(triton) for triton in stack.tritons}
            sys.stdout.write(json.dumps({"run": str(stack.run_dir), "pids": pids}) + "\n")
            sys.stdout.flush()
            await stack.wait()


if __name__ == "__main__":
    raise SystemExit(local.supervise(main()))
