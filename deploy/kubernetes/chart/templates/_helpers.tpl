{{- define "gotrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "gotrace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gotrace.account" -}}
{{- default (include "gotrace.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "gotrace.selector" -}}
app.kubernetes.io/name: {{ include "gotrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gotrace.labels" -}}
{{ include "gotrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* The daemon listens on loopback unless told otherwise; probes and Prometheus come to the pod's address. */ -}}
{{- define "gotrace.config" -}}
{{- $http := dict "listen" (printf "0.0.0.0:%d" (int .Values.metrics.port)) -}}
{{- if ((.Values.http).tokenSecret).name -}}
{{- $_ := set $http "token_file" "/run/secrets/gotrace/token" -}}
{{- end -}}
{{- $listen := dict "http" $http -}}
{{- $engine := ternary (dict "trace" (dict "engine" "snapshot")) (dict) .Values.snapshotOnly -}}
{{- $spool := dict -}}
{{- if .Values.spool.enabled -}}
{{- $spool = dict "otlp" (dict "spool" (dict "directory" "/var/lib/gotrace/spool" "size" .Values.spool.size)) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $spool (deepCopy .Values.config) $engine $listen) -}}
{{- end -}}

{{- /* What the container may do. */ -}}
{{- define "gotrace.securityContext" -}}
# Another user cannot use what capabilities would let it: they are given to root.
runAsUser: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add:
    {{- if .Values.snapshotOnly }}
    - SYS_PTRACE
    - DAC_READ_SEARCH
    {{- else }}
    {{- toYaml .Values.securityContext.capabilities.add | nindent 4 }}
    {{- if .Values.securityContext.sysAdmin }}
    - SYS_ADMIN
    {{- end }}
    {{- end }}
seccompProfile:
  {{- if .Values.snapshotOnly }}
  type: RuntimeDefault
  {{- else }}
  {{- toYaml .Values.securityContext.seccompProfile | nindent 2 }}
  {{- end }}
{{- with .Values.securityContext.appArmorProfile }}
appArmorProfile: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
