"""Operations: the answer to every change, and the threads that run their work.

A change and its operation are written in one transaction. A driver's work runs in a thread,
outside the lock, while the operation is RUNNING. The operation's type and target tell everything
that the work needs, so an operation that a killed process left is run again at the next start.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from lab.cloud import Json, links
from lab.cloud.errors import OperationError, not_ready
from lab.cloud.links import Scope
from lab.cloud.store import Store, StoreError, Transaction
from lab.machines.driver import MachineError

KEPT: Final = 500  # operations in a scope; Google keeps them for 14 days
WAIT_SECONDS: Final = 120.0  # the longest that Google's `wait` method blocks
QUICK_SECONDS: Final = 0.2  # not noticed, and enough for a driver that does nothing
_WORKERS: Final = 64  # operations at once; each may wait for a machine to boot

LOG = logging.getLogger("lab.cloud.compute.operations")

Work = Callable[[str], None]


class Operations:
    """Writes operations and runs their work; `works` is found by (collection, type)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._works: dict[tuple[str, str], Work] = {}
        self._done = threading.Condition()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="operation")

    def register(self, collection: str, kind: str, work: Work) -> None:
        """Have `work(target path)` run for operations of type `kind` on a collection."""
        self._works[collection, kind] = work

    def begin(
        self,
        transaction: Transaction,
        scope: Scope,
        kind: str,
        target: str,
        *,
        target_id: str = "",
        error: OperationError | None = None,
    ) -> Json:
        """Write the operation of a change: PENDING where work is registered for it, else DONE.

        With `error` it is DONE and failed. Call `submit` with it once the transaction is over.
        """
        identity = transaction.new_id()
        name = f"operation-{identity}"
        when = links.now()
        operation: Json = {
            "kind": "compute#operation",
            "id": identity,
            "name": name,
            "operationType": kind,
            "targetLink": links.link(target),
            "targetId": target_id or identity,
            "status": "PENDING",
            "progress": 0,
            "user": "nobody@localhost",
            "insertTime": when,
            "startTime": when,
            "selfLink": links.link(f"{scope.path}/operations/{name}"),
        }
        if scope.level != "global":
            operation[scope.level[:-1]] = links.link(scope.path)
        if error is not None or not self._work(operation):
            _finish(operation, error)
        collection = scope.collection("operations")
        self._prune(transaction, collection)
        transaction.put(collection, name, operation)
        return operation

    def _prune(self, transaction: Transaction, collection: str) -> None:
        held = transaction.look(collection)
        if len(held) < KEPT:
            return
        finished = sorted(name for name, each in held.items() if each["status"] == "DONE")
        for name in finished[: len(held) - KEPT + 1]:
            transaction.delete(collection, name)

    def _work(self, operation: Json) -> Work | None:
        collection = operation["targetLink"].split("/")[-2]
        return self._works.get((collection, operation["operationType"]))

    def submit(self, operation: Json) -> Json:
        """Start the work of an operation that is not done; return the operation as it then is.

        Work that ends within QUICK_SECONDS is answered as DONE: a provider looks again after ten
        seconds otherwise.
        """
        if operation["status"] == "DONE":
            return operation
        path = links.path_of(operation["selfLink"], _NOWHERE)
        try:
            self._pool.submit(self._run, path)
        except RuntimeError:
            LOG.warning("%s: the lab is stopping; this runs at the next start", path)
            return operation
        return self.wait(*links.split(path), timeout=QUICK_SECONDS) or operation

    def resume(self) -> int:
        """Run the operations again that a dead process left undone; return their number."""
        with self._store.transaction() as transaction:
            left = [
                operation
                for collection in transaction.collections(links.STORE)
                if collection.endswith("/operations")
                for operation in transaction.documents(collection).values()
                if operation["status"] != "DONE"
            ]
        for operation in left:
            LOG.warning("%s: run again", operation["selfLink"])
            self._pool.submit(self._run, links.path_of(operation["selfLink"], _NOWHERE))
        return len(left)

    def _run(self, path: str) -> None:
        try:
            operation = self._change(path, lambda each: each.update(status="RUNNING"))
            work = self._work(operation)
            error = self._attempt(work, operation) if work else None
            self._change(path, lambda each: _finish(each, error))
        except StoreError:
            LOG.warning("%s: the lab is stopping; this runs again at the next start", path)
        finally:
            with self._done:
                self._done.notify_all()

    def _attempt(self, work: Work, operation: Json) -> OperationError | None:
        try:
            work(links.path_of(operation["targetLink"], _NOWHERE))
        except OperationError as error:
            return error
        except MachineError as error:
            return OperationError("INTERNAL_ERROR", str(error), 503)
        except StoreError:
            raise
        except Exception as error:
            LOG.exception("%s of %s", operation["operationType"], operation["targetLink"])
            return OperationError("INTERNAL_ERROR", f"{type(error).__name__}: {error}", 500)
        return None

    def _change(self, path: str, change: Callable[[Json], None]) -> Json:
        collection, name = links.split(path)
        with self._store.transaction() as transaction:
            operation = transaction.get(collection, name)
            if operation is None:
                message = f"{path} is gone"
                raise StoreError(message)
            change(operation)
            transaction.put(collection, name, operation)
        return operation

    def busy(self, transaction: Transaction, path: str) -> str | None:
        """Return the name of an operation that works on the resource at `path`, or None."""
        scope = path.rsplit("/", 2)[0]
        for name, operation in transaction.look(f"{links.STORE}{scope}/operations").items():
            if operation["status"] != "DONE" and operation["targetLink"] == links.link(path):
                return name
        return None

    def refuse_while_busy(self, transaction: Transaction, path: str) -> None:
        """Refuse (400) to change a resource that an operation works on."""
        busy = self.busy(transaction, path)
        if busy:
            raise not_ready(path, f"{busy} is under way")

    def wait(self, collection: str, name: str, timeout: float = WAIT_SECONDS) -> Json | None:
        """Wait until an operation is DONE, at most `timeout` seconds; None if there is none."""

        def current() -> Json | None:
            with self._store.transaction() as transaction:
                return transaction.get(collection, name)

        with self._done:
            self._done.wait_for(lambda: (each := current()) is None or _is_done(each), timeout)
        return current()

    def close(self) -> None:
        """Wait for running work; work that has not begun stays PENDING for the next start."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_NOWHERE: Final = Scope(project="")


def _is_done(operation: Json) -> bool:
    return bool(operation["status"] == "DONE")


def _finish(operation: Json, error: OperationError | None) -> None:
    operation.update(status="DONE", progress=100, endTime=links.now())
    if error is not None:
        operation.update(
            error={"errors": [{"code": error.code, "message": error.message}]},
            httpErrorStatusCode=error.http_code,
            httpErrorMessage="BAD REQUEST" if error.http_code == 400 else "INTERNAL SERVER ERROR",
        )
