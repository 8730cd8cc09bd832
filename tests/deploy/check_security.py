"""Pod Security `restricted`, and what goes beyond it; where secrets may be."""

from __future__ import annotations

from collections.abc import Iterator

from .check import check, expect
from .manifests import Manifests

# Volumes of the standard `restricted` that stepd has a use for. Nothing of the node itself.
VOLUME_KINDS = {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
NOBODY = 65532
SERVERS_SECRET, WORKERS_SECRET = "stepd-tokens", "stepd-worker-token"


@check
def pods_have_an_account_of_their_own(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        if w.pod.get("serviceAccountName") not in m.names("ServiceAccount"):
            yield f"{w.name}: serviceAccountName {w.pod.get('serviceAccountName')!r} is not in the base"


@check
def no_api_token_in_pods(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        yield from expect(f"{w.name}: token automount", w.pod.get("automountServiceAccountToken"), False)
    for account in m.of("ServiceAccount"):
        yield from expect("the account's token automount", account.get("automountServiceAccountToken"), False)


@check
def pods_run_as_nobody(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        context = w.pod.get("securityContext", {})
        yield from expect(f"{w.name}: runAsNonRoot", context.get("runAsNonRoot"), True)
        yield from expect(f"{w.name}: runAsUser", context.get("runAsUser"), NOBODY)
        yield from expect(f"{w.name}: runAsGroup", context.get("runAsGroup"), NOBODY)


@check
def containers_do_not_take_the_pods_user_back(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        for field in ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"):
            if field in w.container.document.get("securityContext", {}):
                yield f"{w.name}: the container overrides {field} of its pod"


@check
def volumes_belong_to_the_group(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        context = w.pod.get("securityContext", {})
        yield from expect(f"{w.name}: fsGroup", context.get("fsGroup"), context.get("runAsGroup"))


@check
def system_calls_are_filtered(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        profile = w.pod.get("securityContext", {}).get("seccompProfile", {})
        yield from expect(f"{w.name}: seccomp profile", profile.get("type"), "RuntimeDefault")


@check
def no_privilege_escalation(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        context = w.container.document.get("securityContext", {})
        yield from expect(f"{w.name}: allowPrivilegeEscalation", context.get("allowPrivilegeEscalation"), False)
        yield from expect(f"{w.name}: privileged", context.get("privileged", False), False)


@check
def no_capabilities(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        capabilities = w.container.document.get("securityContext", {}).get("capabilities", {})
        yield from expect(f"{w.name}: capabilities", capabilities, {"drop": ["ALL"]})


@check
def root_is_read_only(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        context = w.container.document.get("securityContext", {})
        yield from expect(f"{w.name}: readOnlyRootFilesystem", context.get("readOnlyRootFilesystem"), True)


@check
def nothing_of_the_host(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            yield from expect(f"{w.name}: {field}", w.pod.get(field, False), False)
        for port in w.container.document.get("ports", []):
            if "hostPort" in port or "hostIP" in port:
                yield f"{w.name}: port {port['name']} is one of the host"
        for volume in w.volumes.values():
            kinds = set(volume) - {"name"}
            if not kinds <= VOLUME_KINDS:
                yield f"{w.name}: volume {volume['name']} is of kind {kinds - VOLUME_KINDS}"


@check
def no_environment_made_up_from_services(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        yield from expect(f"{w.name}: enableServiceLinks", w.pod.get("enableServiceLinks"), False)


@check
def no_further_containers(m: Manifests) -> Iterator[str]:
    # The checks look at one container; another would go unseen.
    for w in m.workloads():
        count = sum(len(w.pod.get(field, [])) for field in ("containers", "initContainers", "ephemeralContainers"))
        yield from expect(f"{w.name}: containers", count, 1)


@check
def no_secret_is_shipped(m: Manifests) -> Iterator[str]:
    for secret in m.of("Secret"):
        yield f"the base carries the Secret {secret['metadata']['name']}: a default credential is everybody's"
    for w in m.workloads():
        for name, variable in w.container.environment.items():
            if any(word in name for word in ("TOKEN", "SECRET", "PASSWORD", "KEY")) and "value" in variable:
                yield f"{w.name}: {name} stands in the manifest"
        if any("token=" in argument.lower() for argument in w.container.arguments):
            yield f"{w.name}: a token on the command line can be read by every process of the node"


@check
def servers_require_tokens(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        path = w.container.value_of("--tokens")
        folder, _, file = path.rpartition("/")
        mounts = [mount for mount in w.container.mounts if mount["mountPath"] == folder]
        if not path or not mounts:
            yield f"{w.name}: --tokens={path} is in no mounted volume"
            continue
        secret = w.volumes.get(mounts[0]["name"], {}).get("secret", {})
        yield from expect(f"{w.name}: Secret of the tokens", secret.get("secretName"), SERVERS_SECRET)
        yield from expect(f"{w.name}: key of the tokens", file, "tokens")
        yield from expect(f"{w.name}: optional", secret.get("optional", False), False)


@check
def secrets_are_mounted_closed(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        for name, volume in w.volumes.items():
            if "secret" not in volume:
                continue
            # Owner root, group fsGroup: the group must read it, others must not, and nobody writes or runs it.
            yield from expect(f"{w.name}: mode of {name}", oct(volume["secret"].get("defaultMode", 0o644)), oct(0o440))
            for mount in (mount for mount in w.container.mounts if mount["name"] == name):
                yield from expect(f"{w.name}: {name} readOnly", mount.get("readOnly"), True)
                if "subPath" in mount:
                    yield f"{w.name}: {name} is mounted by subPath and would not see a rotated token"


@check
def workers_hold_no_token_of_the_fleet(m: Manifests) -> Iterator[str]:
    reference = m.workers.container.environment.get("STEPD_TOKEN", {}).get("valueFrom", {}).get("secretKeyRef")
    yield from expect("the workers' token", reference, {"name": WORKERS_SECRET, "key": "token"})
    if any("secret" in volume for volume in m.workers.volumes.values()):
        yield "the workers mount a Secret"


@check
def one_image_with_a_tag(m: Manifests) -> Iterator[str]:
    images = {w.container.document["image"] for w in m.workloads()}
    if len(images) != 1:
        yield f"client and server of different images: {sorted(images)}"
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in {"", "latest"}:
            yield f"{image}: which version that is changes behind our back"


@check
def base_is_in_no_namespace(m: Manifests) -> Iterator[str]:
    for document in m.documents:
        if "namespace" in document["metadata"]:
            yield f"{document['kind']} {document['metadata']['name']} names a namespace"
