"""The state: transactions, restarts, one owner, waiting for changes."""

import threading
from pathlib import Path

import pytest

from lab.cloud.store import Store, StoreError, fingerprint


def test_commits_survive_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.transaction() as tx:
        tx.put("a/b", "one", {"x": 1})
        tx.put("a/b", "two", {"x": 2})
        first = tx.new_id()
    with store.transaction() as tx:
        tx.delete("a/b", "two")
    store.close()
    again = Store(tmp_path)
    with again.transaction() as tx:
        assert tx.documents("a/b") == {"one": {"x": 1}}
        assert tx.collections("a/") == ["a/b"]
        assert int(tx.new_id()) > int(first)
    again.close()


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.transaction() as tx:
            tx.put("a", "one", {})
            assert tx.get("a", "one") == {}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.transaction() as tx:
        assert tx.get("a", "one") is None
    assert store.generation == 0
    store.close()


def test_documents_are_copies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    body = {"list": [1]}
    with store.transaction() as tx:
        tx.put("a", "one", body)
        body["list"].append(2)
        read = tx.get("a", "one")
        assert read == {"list": [1]}
    with store.transaction() as tx:
        read = tx.get("a", "one")
        assert read is not None
        read["list"].append(3)
        assert tx.get("a", "one") == {"list": [1]}
    store.close()


def test_a_transaction_sees_its_own_changes_in_lists(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.transaction() as tx:
        tx.put("a", "kept", {})
        tx.put("a", "gone", {})
    with store.transaction() as tx:
        tx.put("a", "new", {})
        tx.put("b", "other", {})
        tx.delete("a", "gone")
        assert list(tx.documents("a")) == ["kept", "new"]
        assert tx.collections("") == ["a", "b"]
        tx.delete("b", "other")
        assert tx.collections("") == ["a"]
    store.close()


def test_one_process_owns_a_directory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match=r"is in use by process \d+; stop it or choose another"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_file_that_is_no_database_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite3").write_bytes(b"not a database, but long enough to be one " * 40)
    with pytest.raises(StoreError, match=r"delete .* to start afresh"):
        Store(tmp_path)
    (tmp_path / "state.sqlite3").unlink()
    Store(tmp_path).close()


def test_waiting_ends_with_a_change_and_with_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = store.generation
    assert store.wait(before, timeout=0) == before
    seen: list[int] = []
    waiter = threading.Thread(target=lambda: seen.append(store.wait(before, timeout=30)))
    waiter.start()
    with store.transaction() as tx:
        tx.put("a", "one", {})
    waiter.join(timeout=30)
    assert seen == [before + 1]
    waiter = threading.Thread(target=lambda: seen.append(store.wait(before + 1, timeout=30)))
    waiter.start()
    store.close()
    waiter.join(timeout=30)
    assert seen == [before + 1, before + 1]
    with pytest.raises(StoreError, match="closed"), store.transaction():
        pass


def test_a_reading_transaction_is_no_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.transaction() as tx:
        tx.documents("a")
    assert store.generation == 0
    store.close()


def test_fingerprints_follow_the_content_and_look_like_googles() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint([])) == 12
    assert fingerprint([]).endswith("=")


def test_blobs_that_nothing_names_are_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, left = store.blobs.write(b"kept"), store.blobs.write(b"left")
    (tmp_path / "blobs" / "half.part").write_bytes(b"cut short")
    store.blobs.keep_only({kept})
    assert store.blobs.path(kept).read_bytes() == b"kept"
    assert not store.blobs.path(left).exists()
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [kept]
    store.close()
