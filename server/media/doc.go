// Package media is the content repository: what users upload, what other servers' users uploaded and ours want to see,
// thumbnails of both, and previews of links. Spec v1.19 client-server-api/#content-repository
//
// A file is bytes and a description. The bytes are a blob, stored once under its SHA-256 however many media IDs, of ours or
// of other servers, stand for it; the description is a row (storage.Media). The last row that goes takes the blob
// with it. Media of other servers are a cache that may be emptied at any time.
//
// A download is answered with a [File], which knows how to serve itself over HTTP: ranges, HEAD, conditions and the
// headers that keep a browser from running what a stranger has uploaded.
package media
