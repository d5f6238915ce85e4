"""The artifact store: blobs, the space that tenants have in it, and which blobs are removed."""

from store.storage.blobs import ArtifactStorage, Blob, StoredBlob

__all__ = ["ArtifactStorage", "Blob", "StoredBlob"]
