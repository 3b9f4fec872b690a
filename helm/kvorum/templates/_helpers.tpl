{{/* Names. Kubernetes appends an ordinal and a revision's hash to the StatefulSet's, in labels of at most 63 characters. */}}
{{- define "kvorum.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kvorum.headless" -}}{{ include "kvorum.fullname" . }}-headless{{- end -}}
{{- define "kvorum.genesis" -}}{{ include "kvorum.fullname" . }}-genesis{{- end -}}
{{- define "kvorum.scale" -}}{{ include "kvorum.fullname" . }}-scale{{- end -}}
{{- define "kvorum.leader" -}}{{ include "kvorum.fullname" . }}-leader{{- end -}}

{{- define "kvorum.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "kvorum.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "kvorum.image" -}}
{{- $image := .Values.image -}}
{{- $name := ternary $image.repository (printf "%s/%s" $image.registry $image.repository) (empty $image.registry) -}}
{{- if $image.digest -}}
{{ $name }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Labels. The selector's never change, for a StatefulSet's selector cannot. */}}
{{- define "kvorum.instanceLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvorum.selectorLabels" -}}
{{ include "kvorum.instanceLabels" . }}
app.kubernetes.io/component: server
{{- end -}}

{{/* Head of every object: (list $ NAME [labels] [annotations] [namespace]). */}}
{{- define "kvorum.metadata" -}}
{{- $root := index . 0 -}}
{{- $labels := merge (dict) (index . 2 | default dict) (include "kvorum.instanceLabels" $root | fromYaml) -}}
{{- $labels = merge $labels (dict "app.kubernetes.io/version" $root.Chart.AppVersion "app.kubernetes.io/managed-by" $root.Release.Service "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version)) $root.Values.commonLabels -}}
name: {{ index . 1 }}
namespace: {{ index . 4 | default $root.Release.Namespace }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with merge (dict) (index . 3 | default dict) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How many pods: the live number, unless the values are to set it or there is nothing alive. */}}
{{- define "kvorum.replicas" -}}
{{- $replicas := .Values.replicaCount -}}
{{- if eq .Values.scaling.mode "live" -}}
{{- $live := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "kvorum.fullname" .) -}}
{{- if $live -}}
{{- $replicas = $live.spec.replicas -}}
{{- end -}}
{{- end -}}
{{- int $replicas -}}
{{- end -}}

{{/* One value of a TOML file. Helm reads whole numbers as floats, which kvorum refuses. */}}
{{- define "kvorum.toml.value" -}}
{{- if kindIs "slice" . -}}
[{{ range $index, $element := . }}{{ if $index }}, {{ end }}{{ include "kvorum.toml.value" $element }}{{ end }}]
{{- else if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/* kvorum.toml. Nothing in it may depend on the number of pods, or scaling would restart them all. */}}
{{- define "kvorum.toml" -}}
{{- $discovery := dict
  "method" "kubernetes"
  "statefulset" (include "kvorum.fullname" .)
  "service" (include "kvorum.headless" .)
  "cluster_domain" .Values.clusterDomain
  "api" .Values.scaling.useApi
  "genesis_config_map" (include "kvorum.genesis" .)
  "replicas_file" "/etc/kvorum-scale/replicas"
  "auto_join" .Values.scaling.autoJoin
  "auto_leave" .Values.scaling.autoLeave
  "remove_after_seconds" .Values.scaling.removeAfterSeconds
-}}
{{- if .Values.leaderService.enabled -}}
{{- $_ := set $discovery "leader_endpoint_slice" (include "kvorum.leader" .) -}}
{{- end -}}
{{- $sections := dict
  "discovery" $discovery
  "database" (dict "base_path" "/var/lib/kvorum")
  "reads" (dict
    "consistency_level" .Values.reads.consistencyLevel
    "allow_stale_reads" .Values.reads.allowStaleReads
    "max_staleness_ms" .Values.reads.maxStalenessMs)
  "consensus" (dict
    "election_timeout_ms" .Values.consensus.electionTimeoutMs
    "heartbeat_interval_ms" .Values.consensus.heartbeatIntervalMs
    "max_batch_size" .Values.consensus.maxBatchSize
    "max_outstanding_proposals" .Values.consensus.maxOutstandingProposals)
  "http" (dict "admin" .Values.http.admin)
  "logging" (dict "log_level" .Values.logging.level)
-}}
{{- $sections = mergeOverwrite $sections (deepCopy .Values.config) -}}
{{- range $section, $keys := $sections }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ include "kvorum.toml.value" $value }}
{{- end }}
{{ end }}
{{- end -}}

{{/* What stands in every container: image, rights, and who the pod is. */}}
{{- define "kvorum.container" -}}
image: {{ include "kvorum.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{- define "kvorum.env" -}}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  - name: POD_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "kvorum.affinity" -}}
{{- if .Values.affinity -}}
{{- toYaml .Values.affinity -}}
{{- else if ne .Values.affinityPreset "none" -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "kvorum.selectorLabels" . | fromYaml)) -}}
podAntiAffinity:
{{- if eq .Values.affinityPreset "hard" }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - {{- toYaml $term | nindent 6 }}
{{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        {{- toYaml $term | nindent 8 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* How a monitor scrapes a pod. */}}
{{- define "kvorum.scrape" -}}
path: /metrics
interval: {{ .interval }}
scrapeTimeout: {{ .scrapeTimeout }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
