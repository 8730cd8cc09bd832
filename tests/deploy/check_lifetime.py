"""What a pod may take, what outlives it, and how it starts and ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from stepd.limits import DRAIN_S, MIB

from .check import check, expect
from .manifests import Manifests, bytes_of

# What a server needs besides the volumes that count against its limit: interpreter, libraries, streams under way.
WORKING_BYTES = 300 * MIB
# From the end of the drain to the end of the process.
END_S = 5
KINDS = {"ServiceAccount", "Service", "StatefulSet", "PodDisruptionBudget", "Job"}

# Schemas take any text here; the API server does not.
CHOICES: dict[str, set[str]] = {
    "podManagementPolicy": {"Parallel", "OrderedReady"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "medium": {"", "Memory"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "operator": {"In", "NotIn"},
    "fsGroupChangePolicy": {"Always", "OnRootMismatch"},
    "dnsPolicy": {"ClusterFirst", "Default", "ClusterFirstWithHostNet", "None"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
}


@check
def choices_are_ones_that_exist(m: Manifests) -> Iterator[str]:
    for document in m.documents:
        for name, value in _fields(document):
            if name in CHOICES and value not in CHOICES[name]:
                yield f"{document['metadata']['name']}: {name} {value!r} is not one of {sorted(CHOICES[name])}"


def _fields(node: Any) -> Iterator[tuple[str, Any]]:
    """Every field below, with its value."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield name, value
            yield from _fields(value)
    elif isinstance(node, list):
        for value in node:
            yield from _fields(value)


@check
def kinds_are_those_that_the_design_has(m: Manifests) -> Iterator[str]:
    # No Deployment, since shards have identities; no autoscaler, since their number is the layout of the data.
    for document in m.documents:
        if document["kind"] not in KINDS:
            yield f"{document['kind']} {document['metadata']['name']} has no place in the design"


@check
def quantities_can_be_read(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        resources = w.container.document["resources"]
        memory = [resources[of]["memory"] for of in ("requests", "limits") if "memory" in resources.get(of, {})]
        sizes = [v["emptyDir"]["sizeLimit"] for v in w.volumes.values() if "sizeLimit" in v.get("emptyDir", {})]
        for quantity in [*memory, *sizes]:
            try:
                bytes_of(quantity)
            except ValueError as error:
                yield f"{w.name}: {error}"
        for of in ("requests", "limits"):
            processors = str(resources.get(of, {}).get("cpu", "1"))
            if not re.fullmatch(r"\d+(\.\d{1,3})?|[1-9]\d*m", processors):
                yield f"{w.name}: {processors!r} is not a quantity of processors"


@check
def memory_is_requested_in_full(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        resources = w.container.document.get("resources", {})
        limit = resources.get("limits", {}).get("memory")
        if limit is None:
            yield f"{w.name}: no memory limit"
        yield from expect(f"{w.name}: memory request", resources.get("requests", {}).get("memory"), limit)


@check
def processors_are_requested_and_not_limited(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        resources = w.container.document.get("resources", {})
        if "cpu" not in resources.get("requests", {}):
            yield f"{w.name}: no CPU request"
        if "cpu" in resources.get("limits", {}):
            yield f"{w.name}: a CPU limit makes every other worker wait"


@check
def volumes_in_memory_are_bounded(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        for name, volume in w.volumes.items():
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{w.name}: {name} may take the whole machine"


@check
def memory_holds_volumes_and_work(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        limit = _bytes(w.container.document.get("resources", {}).get("limits", {}).get("memory"))
        volumes = sum(_bytes(v["emptyDir"].get("sizeLimit")) for v in w.volumes.values() if "emptyDir" in v)
        if limit - volumes < WORKING_BYTES:
            yield f"{w.name}: of {limit} bytes the volumes leave {limit - volumes} to work in, not {WORKING_BYTES}"


def _bytes(quantity: object) -> int:
    """0 for what is not a quantity: that is another check's finding."""
    try:
        return bytes_of(quantity)
    except ValueError:
        return 0


@check
def state_outlives_the_container(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        folder = w.container.value_of("--data-dir")
        names = [mount["name"] for mount in w.container.mounts if mount["mountPath"] == folder]
        if not folder or not names:
            yield f"{w.name}: --data-dir={folder} is not on a volume and dies with the container"
            continue
        volume = w.volumes.get(names[0], {})
        # Memory: mapped pages are the process's own, and no disk is asked for what `process` does not promise.
        yield from expect(f"{w.name}: medium of the state", volume.get("emptyDir", {}).get("medium"), "Memory")


@check
def there_is_a_place_for_temporary_files(m: Manifests) -> Iterator[str]:
    for w in m.workloads():
        if "/tmp" not in {mount["mountPath"] for mount in w.container.mounts}:
            yield f"{w.name}: the root is read-only and there is no /tmp"


@check
def one_coordinator(m: Manifests) -> Iterator[str]:
    yield from expect("coordinators", m.coordinator.spec.get("replicas"), 1)


@check
def peers_start_together(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        yield from expect(f"{w.name}: podManagementPolicy", w.spec.get("podManagementPolicy"), "Parallel")


@check
def an_apply_ends_no_run(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        yield from expect(f"{w.name}: updateStrategy", w.spec.get("updateStrategy"), {"type": "OnDelete"})


@check
def a_drain_asks_first(m: Manifests) -> Iterator[str]:
    guarded = []
    for budget in m.of("PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        yield from expect(f"budget {name}: maxUnavailable", spec.get("maxUnavailable"), 0)
        yield from expect(f"budget {name}: broken pods", spec.get("unhealthyPodEvictionPolicy"), "AlwaysAllow")
        found = m.selected_by(spec.get("selector", {}).get("matchLabels", {}))
        if len(found) != 1:
            yield f"budget {name} covers {[w.name for w in found]}"
        guarded += [w.name for w in found]
    yield from expect("guarded by a budget", sorted(guarded), sorted(w.name for w in m.servers()))


@check
def there_is_time_to_end(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        sleep = w.container.document.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        yield from expect(f"{w.name}: preStop sleep", sleep, 5)
        grace = w.pod.get("terminationGracePeriodSeconds", 30)
        if grace < (sleep or 0) + DRAIN_S + END_S:
            yield f"{w.name}: {grace} s are less than {sleep} s of sleep, {DRAIN_S} s of drain and {END_S} s to end"


@check
def probes_are_patient(m: Manifests) -> Iterator[str]:
    for w in m.servers():
        patience = {
            probe: spec.get("periodSeconds", 10) * spec.get("failureThreshold", 3)
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
            if (spec := w.container.document.get(probe))
        }
        # A kill must not come from one slow answer, nor while a large run's memory is being mapped again.
        for probe, least in (("startupProbe", 120), ("livenessProbe", 30), ("readinessProbe", 10)):
            if patience.get(probe, 0) < least:
                yield f"{w.name}: {probe} gives up after {patience.get(probe, 0)} s, expected at least {least} s"
        for probe in patience:
            spec = w.container.document[probe]
            if spec.get("timeoutSeconds", 1) > spec.get("periodSeconds", 10) or spec.get("timeoutSeconds", 1) < 2:
                yield f"{w.name}: {probe} waits {spec.get('timeoutSeconds', 1)} s for an answer"


@check
def workers_give_up_in_the_end(m: Manifests) -> Iterator[str]:
    for field in ("activeDeadlineSeconds", "backoffLimit"):
        if not isinstance(m.workers.spec.get(field), int):
            yield f"{m.workers.name}: no {field}"


@check
def a_preempted_worker_comes_back(m: Manifests) -> Iterator[str]:
    rules = m.workers.spec.get("podFailurePolicy", {}).get("rules", [])
    ignored = [c for r in rules if r["action"] == "Ignore" for c in r.get("onPodConditions", [])]
    yield from expect("ignored failures", ignored, [{"type": "DisruptionTarget", "status": "True"}])
    fatal = [code for r in rules if r["action"] == "FailJob" for code in r.get("onExitCodes", {}).get("values", [])]
    yield from expect("exit codes that end the Job", fatal, [2])
