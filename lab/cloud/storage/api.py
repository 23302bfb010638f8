"""All of Cloud Storage's JSON API."""

from lab.cloud.iam import Policies
from lab.cloud.storage.buckets import Buckets
from lab.cloud.storage.objects import Objects
from lab.cloud.storage.uploads import Uploads
from lab.cloud.store import Store
from lab.cloud.web import Route


class Storage:
    """Answers below `/storage/v1/`, `/upload/storage/v1/` and `/download/storage/v1/`."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._buckets = Buckets(store, policies)
        self._objects = Objects(store, self._buckets)
        self._uploads = Uploads(store, self._buckets, self._objects)

    def recover(self) -> None:
        """Delete bytes that no object names."""
        self._objects.recover()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [*self._buckets.routes(), *self._objects.routes(), *self._uploads.routes()]
