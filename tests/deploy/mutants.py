"""The manifests with one thing wrong each, so that every check is seen to fail for its own reason.

A mutant changes a copy in place. `Mutant(check, change)`: the check of that name must complain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .manifests import Document, Manifests, Workload


@dataclass(frozen=True)
class Mutant:
    """One thing that is wrong.

    Attributes:
        check: the name of the check that must find it.
        wrong: what is wrong, in a few words.
        change: makes it wrong.
    """

    check: str
    wrong: str
    change: Callable[[Manifests], object]


def _security(w: Workload) -> Document:
    security: Document = w.container.document["securityContext"]
    return security


def _resources(w: Workload) -> Document:
    resources: Document = w.container.document["resources"]
    return resources


def _volume(w: Workload, name: str, kind: str) -> Document:
    volume: Document = w.volumes[name][kind]
    return volume


def _mount(w: Workload, name: str) -> Document:
    (mount,) = (mount for mount in w.container.mounts if mount["name"] == name)
    return mount


def _argument(w: Workload, flag: str, value: str | None) -> None:
    """Give the flag another value, or take it away."""
    arguments: list[str] = w.container.document["args"]
    (at,) = (i for i, argument in enumerate(arguments) if argument.partition("=")[0] == flag)
    arguments[at : at + 1] = [] if value is None else [f"{flag}={value}"]


def _extra(m: Manifests, document: Document) -> None:
    m.documents.append(document)


def _put(where: Document, **fields: Any) -> None:
    where.update(fields)


def _service(m: Manifests, name: str) -> Document:
    spec: Document = m.named("Service", name)["spec"]
    return spec


def _budget(m: Manifests, name: str) -> Document:
    spec: Document = m.named("PodDisruptionBudget", name)["spec"]
    return spec


_SECURITY = [
    Mutant(
        "pods_have_an_account_of_their_own",
        "the namespace's default account",
        lambda m: m.shard.pod.pop("serviceAccountName"),
    ),
    Mutant("no_api_token_in_pods", "left out", lambda m: m.workers.pod.pop("automountServiceAccountToken")),
    Mutant(
        "no_api_token_in_pods",
        "asked for by the account",
        lambda m: _put(m.named("ServiceAccount", "stepd"), automountServiceAccountToken=True),
    ),
    Mutant("pods_run_as_nobody", "root", lambda m: _put(m.shard.pod["securityContext"], runAsUser=0)),
    Mutant("pods_run_as_nobody", "not said", lambda m: m.coordinator.pod["securityContext"].pop("runAsNonRoot")),
    Mutant(
        "containers_do_not_take_the_pods_user_back", "root after all", lambda m: _put(_security(m.shard), runAsUser=0)
    ),
    Mutant("volumes_belong_to_the_group", "no fsGroup", lambda m: m.shard.pod["securityContext"].pop("fsGroup")),
    Mutant(
        "system_calls_are_filtered",
        "unconfined",
        lambda m: _put(m.shard.pod["securityContext"], seccompProfile={"type": "Unconfined"}),
    ),
    Mutant("no_privilege_escalation", "allowed", lambda m: _put(_security(m.workers), allowPrivilegeEscalation=True)),
    Mutant("no_privilege_escalation", "privileged", lambda m: _put(_security(m.shard), privileged=True)),
    Mutant("no_capabilities", "one kept", lambda m: _put(_security(m.shard)["capabilities"], add=["NET_BIND_SERVICE"])),
    Mutant("no_capabilities", "one dropped", lambda m: _put(_security(m.shard), capabilities={"drop": ["NET_RAW"]})),
    Mutant("root_is_read_only", "not said", lambda m: _security(m.coordinator).pop("readOnlyRootFilesystem")),
    Mutant("nothing_of_the_host", "its network", lambda m: _put(m.shard.pod, hostNetwork=True)),
    Mutant("nothing_of_the_host", "its port", lambda m: _put(m.shard.container.document["ports"][0], hostPort=7071)),
    Mutant(
        "nothing_of_the_host",
        "its files",
        lambda m: m.shard.pod["volumes"].append({"name": "host", "hostPath": {"path": "/dev/shm"}}),
    ),
    Mutant("no_environment_made_up_from_services", "not said", lambda m: m.coordinator.pod.pop("enableServiceLinks")),
    Mutant(
        "no_further_containers",
        "an init container",
        lambda m: _put(m.shard.pod, initContainers=[{"name": "chown", "image": "busybox"}]),
    ),
    Mutant(
        "no_secret_is_shipped",
        "a default token",
        lambda m: _extra(m, {"kind": "Secret", "metadata": {"name": "stepd-tokens"}}),
    ),
    Mutant(
        "no_secret_is_shipped",
        "a token in the environment",
        lambda m: _put(m.workers.container.environment["STEPD_TOKEN"], value="s3cret"),
    ),
    Mutant(
        "no_secret_is_shipped",
        "a token in the arguments",
        lambda m: m.workers.container.document["args"].append("--token=$(STEPD_TOKEN)"),
    ),
    Mutant("servers_require_tokens", "no tokens", lambda m: _argument(m.coordinator, "--tokens", None)),
    Mutant("servers_require_tokens", "another file", lambda m: _argument(m.shard, "--tokens", "/etc/stepd/tokens/x")),
    Mutant(
        "servers_require_tokens", "another Secret", lambda m: _put(_volume(m.shard, "tokens", "secret"), secretName="x")
    ),
    Mutant(
        "servers_require_tokens", "may be missing", lambda m: _put(_volume(m.shard, "tokens", "secret"), optional=True)
    ),
    Mutant(
        "secrets_are_mounted_closed",
        "readable by all",
        lambda m: _put(_volume(m.coordinator, "tokens", "secret"), defaultMode=0o444),
    ),
    Mutant(
        "secrets_are_mounted_closed",
        "the mode in decimal",
        lambda m: _put(_volume(m.coordinator, "tokens", "secret"), defaultMode=440),
    ),
    Mutant("secrets_are_mounted_closed", "by subPath", lambda m: _put(_mount(m.shard, "tokens"), subPath="tokens")),
    Mutant("secrets_are_mounted_closed", "writable", lambda m: _mount(m.shard, "tokens").pop("readOnly")),
    Mutant(
        "workers_hold_no_token_of_the_fleet",
        "the servers' Secret",
        lambda m: _put(
            m.workers.container.environment["STEPD_TOKEN"]["valueFrom"]["secretKeyRef"], name="stepd-tokens"
        ),
    ),
    Mutant(
        "one_image_with_a_tag",
        "latest",
        lambda m: [w.container.document.update(image="stepd:latest") for w in m.workloads()],
    ),
    Mutant("one_image_with_a_tag", "two images", lambda m: _put(m.workers.container.document, image="stepd:0.0.9")),
    Mutant("base_is_in_no_namespace", "default", lambda m: _put(m.shard.document["metadata"], namespace="default")),
]

_WIRING = [
    Mutant("names_are_unique_dns_labels", "twice", lambda m: _extra(m, m.coordinator.document)),
    Mutant(
        "names_are_unique_dns_labels", "underscore", lambda m: _put(m.shard.document["metadata"], name="stepd_shard")
    ),
    Mutant(
        "everything_says_what_it_is_part_of",
        "no label",
        lambda m: m.shard.document["metadata"]["labels"].pop("app.kubernetes.io/part-of"),
    ),
    Mutant(
        "workloads_select_their_pods",
        "selector of another",
        lambda m: _put(m.shard.spec["selector"]["matchLabels"], **{"app.kubernetes.io/component": "coordinator"}),
    ),
    Mutant(
        "workloads_select_their_pods",
        "too wide",
        lambda m: m.shard.spec["selector"]["matchLabels"].pop("app.kubernetes.io/component"),
    ),
    Mutant(
        "services_select_one_statefulset",
        "the whole fleet behind one name",
        lambda m: _service(m, "stepd-shard")["selector"].pop("app.kubernetes.io/component"),
    ),
    Mutant(
        "services_select_one_statefulset",
        "nobody",
        lambda m: _put(_service(m, "stepd-shard")["selector"], **{"app.kubernetes.io/component": "shards"}),
    ),
    Mutant("statefulsets_have_their_service", "misspelt", lambda m: _put(m.shard.spec, serviceName="stepd-shards")),
    Mutant(
        "statefulsets_have_their_service", "of another", lambda m: _put(m.shard.spec, serviceName="stepd-coordinator")
    ),
    Mutant(
        "services_are_headless_and_show_unready_pods",
        "a cluster address",
        lambda m: _service(m, "stepd-shard").pop("clusterIP"),
    ),
    Mutant(
        "services_are_headless_and_show_unready_pods",
        "only ready pods",
        lambda m: _service(m, "stepd-coordinator").pop("publishNotReadyAddresses"),
    ),
    Mutant("services_map_no_ports", "mapped", lambda m: _put(_service(m, "stepd-shard")["ports"][0], port=7070)),
    Mutant(
        "services_map_no_ports",
        "no such port",
        lambda m: _put(_service(m, "stepd-shard")["ports"][0], targetPort="rpc"),
    ),
    Mutant(
        "port_numbers_are_ports",
        "too large",
        lambda m: _put(m.shard.container.document["ports"][0], containerPort=707000),
    ),
    Mutant(
        "port_numbers_are_ports", "twice", lambda m: _put(m.shard.container.document["ports"][1], containerPort=7071)
    ),
    Mutant(
        "servers_listen_where_their_ports_say", "another port", lambda m: _argument(m.shard, "--listen", "0.0.0.0:7070")
    ),
    Mutant(
        "servers_listen_where_their_ports_say", "loopback", lambda m: _argument(m.shard, "--health", "127.0.0.1:8080")
    ),
    Mutant(
        "probes_ask_the_health_port",
        "the port with TLS and tokens",
        lambda m: _put(m.shard.container.document["livenessProbe"]["grpc"], port=7071),
    ),
    Mutant(
        "probes_ask_the_health_port",
        "killed while the coordinator is away",
        lambda m: _put(m.shard.container.document["livenessProbe"]["grpc"], service="stepd.v1.Shard"),
    ),
    Mutant(
        "probes_ask_the_health_port",
        "another role's service",
        lambda m: _put(m.shard.container.document["readinessProbe"]["grpc"], service="stepd.v1.Coordinator"),
    ),
    Mutant("probes_ask_the_health_port", "no probe", lambda m: m.coordinator.container.document.pop("readinessProbe")),
    Mutant("servers_listen_where_their_ports_say", "no metrics", lambda m: _argument(m.shard, "--metrics", None)),
    Mutant(
        "annotations_lead_to_the_metrics",
        "another port",
        lambda m: _put(m.shard.annotations, **{"prometheus.io/port": "8080"}),
    ),
    Mutant(
        "annotations_lead_to_the_metrics",
        "another path",
        lambda m: m.coordinator.annotations.pop("prometheus.io/path"),
    ),
    Mutant(
        "annotations_lead_to_the_metrics",
        "no annotations",
        lambda m: m.coordinator.spec["template"]["metadata"].pop("annotations"),
    ),
    Mutant("mounts_have_volumes", "no volume", lambda m: _put(_mount(m.shard, "data"), name="state")),
    Mutant("mounts_have_volumes", "not mounted", lambda m: m.shard.container.document["volumeMounts"].pop(0)),
    Mutant(
        "mount_paths_are_distinct", "two at one", lambda m: _put(_mount(m.shard, "tmp"), mountPath="/var/lib/stepd")
    ),
    Mutant("variables_in_arguments_exist", "not set", lambda m: m.shard.container.document.pop("env")),
    Mutant("variables_in_arguments_exist", "not an Indexed Job", lambda m: m.workers.spec.pop("completionMode")),
    Mutant("variables_in_arguments_exist", "as in a shell", lambda m: _argument(m.workers, "--rank", "$RANK")),
    Mutant(
        "environment_values_are_text",
        "a number",
        lambda m: _put(m.coordinator.container.environment["STEPD_SERVER_SHARDS"], value=2),
    ),
    Mutant(
        "environment_values_are_text", "nothing", lambda m: m.workers.container.environment["STEPD_TARGET"].pop("value")
    ),
    Mutant(
        "everybody_dials_the_coordinator",
        "no pod's name",
        lambda m: _argument(m.shard, "--coordinator", "stepd-coordinator-1.stepd-coordinator:7070"),
    ),
    Mutant(
        "everybody_dials_the_coordinator",
        "a shard's port",
        lambda m: _put(
            m.workers.container.environment["STEPD_TARGET"], value="stepd-coordinator-0.stepd-coordinator:7071"
        ),
    ),
    Mutant(
        "shards_advertise_their_own_name",
        "the Service's name",
        lambda m: _argument(m.shard, "--advertise", "stepd-shard:7071"),
    ),
    Mutant(
        "shards_advertise_their_own_name",
        "an address that changes",
        lambda m: _put(m.shard.container.environment["POD_NAME"]["valueFrom"]["fieldRef"], fieldPath="status.podIP"),
    ),
    Mutant("shards_take_their_index_from_the_pod", "all the same", lambda m: _argument(m.shard, "--index", "0")),
    Mutant("shards_take_their_index_from_the_pod", "from 1", lambda m: _put(m.shard.spec, ordinals={"start": 1})),
    Mutant("coordinator_expects_the_shards_there_are", "one more", lambda m: _put(m.shard.spec, replicas=3)),
    Mutant(
        "coordinator_expects_the_shards_there_are", "not said", lambda m: m.coordinator.container.document.pop("env")
    ),
    Mutant("workers_are_as_many_as_a_step_takes", "one after the other", lambda m: _put(m.workers.spec, parallelism=1)),
    Mutant("workers_are_as_many_as_a_step_takes", "one missing", lambda m: _argument(m.workers, "--workers", "3")),
    Mutant("workers_have_the_rank_of_their_index", "all the same", lambda m: _argument(m.workers, "--rank", "0")),
    Mutant(
        "failure_policy_names_the_container",
        "another name",
        lambda m: _put(m.workers.spec["podFailurePolicy"]["rules"][1]["onExitCodes"], containerName="demo"),
    ),
    Mutant(
        "failure_policy_names_the_container",
        "restarts in place",
        lambda m: _put(m.workers.pod, restartPolicy="OnFailure"),
    ),
]

_LIFETIME = [
    Mutant("choices_are_ones_that_exist", "misspelt", lambda m: _put(m.shard.spec, podManagementPolicy="Paralel")),
    Mutant(
        "choices_are_ones_that_exist",
        "no such medium",
        lambda m: _put(_volume(m.shard, "tmp", "emptyDir"), medium="RAM"),
    ),
    Mutant(
        "kinds_are_those_that_the_design_has",
        "an autoscaler",
        lambda m: _extra(m, {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "stepd-shard"}}),
    ),
    Mutant("quantities_can_be_read", "2Gib", lambda m: _put(_resources(m.shard)["limits"], memory="2Gib")),
    Mutant(
        "quantities_can_be_read", "millibytes", lambda m: _put(_volume(m.shard, "data", "emptyDir"), sizeLimit="1500m")
    ),
    Mutant("quantities_can_be_read", "half a word", lambda m: _put(_resources(m.shard)["requests"], cpu="half")),
    Mutant("memory_is_requested_in_full", "less", lambda m: _put(_resources(m.shard)["requests"], memory="1Gi")),
    Mutant("memory_is_requested_in_full", "no limit", lambda m: _resources(m.workers).pop("limits")),
    Mutant(
        "processors_are_requested_and_not_limited", "throttled", lambda m: _put(_resources(m.shard)["limits"], cpu="1")
    ),
    Mutant("processors_are_requested_and_not_limited", "none", lambda m: _resources(m.shard)["requests"].pop("cpu")),
    Mutant(
        "volumes_in_memory_are_bounded", "no bound", lambda m: _volume(m.shard, "data", "emptyDir").pop("sizeLimit")
    ),
    Mutant(
        "memory_holds_volumes_and_work",
        "the arena takes all",
        lambda m: _put(_volume(m.shard, "data", "emptyDir"), sizeLimit="2Gi"),
    ),
    Mutant("state_outlives_the_container", "nowhere", lambda m: _argument(m.shard, "--data-dir", "/srv/stepd")),
    Mutant("state_outlives_the_container", "on disk", lambda m: _volume(m.shard, "data", "emptyDir").pop("medium")),
    Mutant(
        "there_is_a_place_for_temporary_files",
        "no /tmp",
        lambda m: _put(_mount(m.workers, "tmp"), mountPath="/var/tmp"),
    ),
    Mutant("one_coordinator", "two", lambda m: _put(m.coordinator.spec, replicas=2)),
    Mutant("peers_start_together", "one by one", lambda m: m.shard.spec.pop("podManagementPolicy")),
    Mutant("an_apply_ends_no_run", "rolled", lambda m: _put(m.shard.spec, updateStrategy={"type": "RollingUpdate"})),
    Mutant(
        "a_drain_asks_first",
        "one may go",
        lambda m: _put(_budget(m, "stepd-shard"), maxUnavailable=1),
    ),
    Mutant(
        "a_drain_asks_first",
        "the budget of another",
        lambda m: _put(_budget(m, "stepd-shard"), selector=_budget(m, "stepd-coordinator")["selector"]),
    ),
    Mutant("there_is_time_to_end", "too short", lambda m: _put(m.shard.pod, terminationGracePeriodSeconds=8)),
    Mutant("there_is_time_to_end", "no sleep", lambda m: m.coordinator.container.document.pop("lifecycle")),
    Mutant(
        "probes_are_patient",
        "killed after one slow answer",
        lambda m: _put(m.shard.container.document["livenessProbe"], failureThreshold=1),
    ),
    Mutant(
        "probes_are_patient",
        "longer than its period",
        lambda m: _put(m.shard.container.document["readinessProbe"], timeoutSeconds=60),
    ),
    Mutant("workers_give_up_in_the_end", "never", lambda m: m.workers.spec.pop("activeDeadlineSeconds")),
    Mutant("a_preempted_worker_comes_back", "counts as a failure", lambda m: m.workers.spec.pop("podFailurePolicy")),
]

MUTANTS = [*_SECURITY, *_WIRING, *_LIFETIME]
