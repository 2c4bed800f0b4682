import { Method, type MatrixClient } from "matrix-js-sdk";

/** What an event says about an encrypted file. Spec v1.19 client-server-api/#extensions-to-mroommessage-msgtypes */
export interface EncryptedFile {
    url: string;
    key: { kty: "oct"; key_ops: string[]; alg: "A256CTR"; k: string; ext: true };
    iv: string;
    hashes: { sha256: string };
    v: "v2";
}

function base64(bytes: ArrayBuffer | Uint8Array): string {
    let text = "";
    for (const b of new Uint8Array(bytes)) text += String.fromCharCode(b);
    return btoa(text).replace(/=+$/, "");
}

function unbase64(text: string): Uint8Array<ArrayBuffer> {
    return Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
}

/** Encrypts a file and gives what the event must say, but for the URL. */
export async function encrypt(plain: ArrayBuffer): Promise<{ data: ArrayBuffer; file: Omit<EncryptedFile, "url"> }> {
    const iv = new Uint8Array(16);
    crypto.getRandomValues(iv.subarray(0, 8)); // the other half counts the blocks
    const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const data = await crypto.subtle.encrypt({ name: "AES-CTR", counter: iv, length: 64 }, key, plain);
    const jwk = await crypto.subtle.exportKey("jwk", key);
    const hash = await crypto.subtle.digest("SHA-256", data);
    return {
        data,
        file: {
            key: { kty: "oct", key_ops: ["encrypt", "decrypt"], alg: "A256CTR", k: jwk.k!, ext: true },
            iv: base64(iv),
            hashes: { sha256: base64(hash) },
            v: "v2",
        },
    };
}

/** Decrypts a file after checking its hash. */
export async function decrypt(data: ArrayBuffer, file: EncryptedFile): Promise<ArrayBuffer> {
    if (base64(await crypto.subtle.digest("SHA-256", data)) !== file.hashes.sha256.replace(/=+$/, "")) {
        throw new Error("the file was changed on the way");
    }
    const key = await crypto.subtle.importKey("jwk", { ...file.key }, { name: "AES-CTR" }, false, ["decrypt"]);
    return crypto.subtle.decrypt({ name: "AES-CTR", counter: unbase64(file.iv), length: 64 }, key, data);
}

/** Uploads a file, encrypted if the room is, and gives the part of the event's content that refers to it. */
export async function upload(
    client: MatrixClient,
    file: Blob,
    name: string,
    encrypted: boolean,
    /** Told how much is there, 0 to 1. */
    progress?: (done: number) => void,
): Promise<Record<string, unknown>> {
    const progressHandler = progress && (({ loaded, total }: { loaded: number; total: number }) => progress(total ? loaded / total : 0));
    if (!encrypted) {
        const { content_uri: url } = await client.uploadContent(file, { name, type: file.type, includeFilename: true, progressHandler });
        return { url };
    }
    const sealed = await encrypt(await file.arrayBuffer());
    const { content_uri: url } = await client.uploadContent(new Blob([sealed.data]), { type: "application/octet-stream", includeFilename: false, progressHandler });
    return { file: { ...sealed.file, url } };
}

/** Asks for a file. The body of the answer may still be growing. */
export async function request(client: MatrixClient, mxc: string, options?: RequestInit): Promise<Response> {
    const url = client.mxcUrlToHttp(mxc, undefined, undefined, undefined, false, true, true);
    if (!url) throw new Error("the message has no file");
    const answer = await fetch(url, { ...options, headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
    if (!answer.ok) throw Object.assign(new Error(`the server answered ${answer.status}`), { httpStatus: answer.status });
    return answer;
}

/** Fetches the file that an event's content refers to, decrypted. */
export async function download(client: MatrixClient, content: Record<string, any>, type: string): Promise<Blob> {
    const file = content.file as EncryptedFile | undefined;
    const answer = await request(client, file?.url ?? content.url);
    if (!file) return answer.blob();
    return new Blob([await decrypt(await answer.arrayBuffer(), file)], { type });
}

/**
 * An address of a file in clear that an <audio> element can fetch parts of without an access token, for an hour. A container
 * (ogg, webm, mp4) asks for the recording in that one. docs/voice.md
 */
export async function mediaLink(client: MatrixClient, mxc: string, container?: string): Promise<string> {
    const [, server, id] = /^mxc:\/\/([^/]+)\/([^/]+)$/.exec(mxc) ?? [];
    if (!id) throw new Error("the message has no file");
    const path = `/link/${encodeURIComponent(server)}/${encodeURIComponent(id)}`;
    const prefix = "/_matrix/client/unstable/im.parley.voice";
    const answer = await client.http.authedRequest<{ path: string }>(Method.Post, path, container ? { container } : {}, {}, { prefix });
    return answer.path;
}
