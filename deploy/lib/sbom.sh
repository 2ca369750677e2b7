# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the files beside this one
#
# sbom.sh - what is in a bundle, as SPDX 2.3 in JSON: the images with versions, digests and licences, and every Rust crate
# in the collector. What is inside the images of others is listed by their makers. Sourced, never run.

# Licences of the programs in the images, as their makers declare them.
licence_of() {
  case $1 in
    KONG | PROMETHEUS | COLLECTOR) echo Apache-2.0 ;;
    POSTGRES) echo PostgreSQL ;;
    GRAFANA) echo AGPL-3.0-only ;;
  esac
}

write_sbom() {
  local role image id digest layers file created
  created=$(date -u -d "@$built" +%FT%TZ)
  cat <<JSON
{
  "spdxVersion": "SPDX-2.3",
  "dataLicense": "CC0-1.0",
  "SPDXID": "SPDXRef-DOCUMENT",
  "name": "$name",
  "documentNamespace": "https://spdx.org/spdxdocs/$name-$(digest_of "$bundle/MANIFEST" "$release_dir/Cargo.lock")",
  "creationInfo": {"created": "$created", "creators": ["Tool: bundle.sh-$version"]},
  "packages": [
    {"SPDXID": "SPDXRef-bundle", "name": "vllm-gateway", "versionInfo": "$version", "downloadLocation": "NOASSERTION",
     "licenseDeclared": "Apache-2.0", "licenseConcluded": "Apache-2.0", "copyrightText": "NOASSERTION", "filesAnalyzed": false}
JSON
  while read -r image id digest layers file; do
    role=$(role_of "$image")
    printf '    ,{"SPDXID": "SPDXRef-image-%s", "name": "%s", "versionInfo": "%s", "downloadLocation": "NOASSERTION", "filesAnalyzed": false,\n' \
      "${role,,}" "${image%:*}" "${image##*:}"
    printf '     "licenseDeclared": "%s", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION", "primaryPackagePurpose": "CONTAINER",\n' "$(licence_of "$role")"
    printf '     "comment": "image id %s, registry digest %s", "checksums": [{"algorithm": "SHA256", "checksumValue": "%s"}]}\n' \
      "$id" "$digest" "$(sha256sum <"$bundle/$file" | cut -d ' ' -f 1)"
  done <"$bundle/MANIFEST"
  crates | while IFS='|' read -r crate crate_version licence; do
    printf '    ,{"SPDXID": "SPDXRef-crate-%s-%s", "name": "%s", "versionInfo": "%s", "downloadLocation": "NOASSERTION", "filesAnalyzed": false,\n' \
      "${crate//_/-}" "${crate_version//[^A-Za-z0-9.-]/-}" "$crate" "$crate_version"
    printf '     "licenseDeclared": "%s", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION",\n' "$licence"
    printf '     "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:cargo/%s@%s"}]}\n' "$crate" "$crate_version"
  done
  cat <<'JSON'
  ],
  "relationships": [
    {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-bundle"}
JSON
  while read -r image _; do
    role=$(role_of "$image")
    printf '    ,{"spdxElementId": "SPDXRef-bundle", "relationshipType": "CONTAINS", "relatedSpdxElement": "SPDXRef-image-%s"}\n' "${role,,}"
  done <"$bundle/MANIFEST"
  crates | while IFS='|' read -r crate crate_version licence; do
    printf '    ,{"spdxElementId": "SPDXRef-image-collector", "relationshipType": "CONTAINS", "relatedSpdxElement": "SPDXRef-crate-%s-%s"}\n' \
      "${crate//_/-}" "${crate_version//[^A-Za-z0-9.-]/-}"
  done
  printf '  ]\n}\n'
}

# name|version|licence of every crate in the binary. Without cargo: from Cargo.lock, licences unknown.
crates() {
  if have cargo && (cd "$release_dir" && cargo tree --locked --package llm-collector --edges normal --prefix none --no-dedupe --format '{p}|{l}' 2>/dev/null) >"$work/crates"; then
    sed -E -e 's/^([^ ]+) v([^ |]+)( \([^)]*\))?\|/\1|\2|/' -e 's#/# OR #g' -e 's/ OR +OR / OR /' "$work/crates" | sed 's/|$/|NOASSERTION/' | sort -u
  else
    awk -F '"' '/^name = / { name = $2 } /^version = / { print name "|" $2 "|NOASSERTION" }' "$release_dir/Cargo.lock" | sort -u
  fi
}
