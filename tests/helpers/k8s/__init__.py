"""Checks of Kubernetes manifests: pure functions from the objects of one `kustomize` build to lines of complaint."""
