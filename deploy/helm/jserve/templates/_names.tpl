{{- define "jserve.name" -}}
{{- printf "%s-jserve" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- define "jserve.selector" -}}
app.kubernetes.io/name: jserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "jserve.labels" -}}
{{ include "jserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
