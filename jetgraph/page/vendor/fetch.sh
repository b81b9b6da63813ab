#!/usr/bin/env bash
# Fetches what pages are drawn with, at the version named here, and its licence. Run by `make vendor`.
set -euo pipefail
VERSION=3.35.0
cd "$(dirname "${BASH_SOURCE[0]}")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --pack-destination "$folder" "cytoscape@$VERSION" >/dev/null
tar -xzf "$folder/cytoscape-$VERSION.tgz" -C "$folder"
cp "$folder/package/dist/cytoscape.min.js" cytoscape.min.js
cp "$folder/package/LICENSE" cytoscape.LICENSE
echo "cytoscape $VERSION: $(sha256sum cytoscape.min.js)"
