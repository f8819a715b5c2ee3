{{- /* written by generate.py */ -}}
{{- define "errata.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}
