import { signal } from "@preact/signals";
import { ClientEvent, createClient, EventStatus, IndexedDBStore, PendingEventOrdering, SyncState, type MatrixClient } from "matrix-js-sdk";
import { CryptoEvent, type CryptoCallbacks } from "matrix-js-sdk/lib/crypto-api";
import { forgetSession, homeserver, type Credentials } from "./account";
import { generatedName } from "./messages";
import { unreachable } from "./problem";

/** The signed-in client; null before. */
export const client = signal<MatrixClient | null>(null);
/** Whether the server can be reached. */
export const online = signal(true);
/** Grows with everything that may change what is shown. */
export const revision = signal(0);

/**
 * Renders the calling component anew whenever revision grows. Every component that shows rooms or events calls it: they change in
 * place, and a component whose properties stay the same is not rendered again. (A bare read would be optimized away.)
 */
export function followRevision(): void {
    if (revision.value < 0) throw new Error("the revision only grows");
}

/** The signed-in client, for code that only runs when there is one. */
export function me(): MatrixClient {
    if (!client.value) throw new Error("not signed in");
    return client.value;
}

/** Fetches and compiles the encryption before anybody has signed in. */
export async function warmUp(): Promise<void> {
    await Promise.all([import("matrix-js-sdk/lib/rust-crypto"), import("@matrix-org/matrix-sdk-crypto-wasm").then((wasm) => wasm.initAsync())]);
}

/** Goes on with a session. Returns when there is something to show. */
export async function start(credentials: Credentials): Promise<void> {
    const { userId, deviceId, accessToken } = credentials;
    const store = new IndexedDBStore({ indexedDB: window.indexedDB, dbName: "parley", localStorage: window.localStorage });
    const matrix = createClient({
        baseUrl: homeserver,
        userId,
        deviceId,
        accessToken,
        store,
        timelineSupport: true,
        disableVoip: true,
        cryptoCallbacks: secrets,
        roomNameGenerator: generatedName,
    });
    await Promise.all([
        store.startup(),
        matrix.initRustCrypto().catch((error) => console.warn("encryption is not available", error)), // private windows have no place for keys
    ]);
    watch(matrix);
    await matrix.startClient({ initialSyncLimit: 30, lazyLoadMembers: true, threadSupport: false, pendingEventOrdering: PendingEventOrdering.Detached });
    client.value = matrix;
    await new Promise<void>((resolve) => {
        const prepared = (state: SyncState): void => {
            if (state !== SyncState.Prepared && state !== SyncState.Syncing) return;
            matrix.off(ClientEvent.Sync, prepared);
            resolve();
        };
        matrix.on(ClientEvent.Sync, prepared);
    });
}

/** So long without a change is a quiet moment. Milliseconds. */
const quiet = 50;

/** Keeps revision in step with whatever may change what is shown, at most once a frame. */
function watch(matrix: MatrixClient): void {
    let waiting = false;
    let last = 0;
    const show = (): void => {
        waiting = false;
        last = performance.now();
        revision.value++;
    };
    const changed = (): void => {
        if (waiting) return;
        waiting = true;
        // After a quiet moment it is there in the next frame, not in the one after it.
        if (performance.now() - last > quiet) setTimeout(show);
        else requestAnimationFrame(show);
    };
    for (const event of [
        "Room", "Room.timeline", "Room.timelineReset", "Room.localEchoUpdated", "Room.receipt", "Room.name", "Room.myMembership",
        "Room.redaction", "RoomState.events", "RoomMember.typing", "Room.accountData", "accountData", "Event.decrypted", "Event.replaced",
        "deleteRoom", CryptoEvent.DevicesUpdated, CryptoEvent.UserTrustStatusChanged, CryptoEvent.KeysChanged,
    ]) {
        matrix.on(event as any, changed);
    }
    matrix.on(ClientEvent.Sync, (state) => {
        const before = online.value;
        online.value = state !== SyncState.Error && state !== SyncState.Reconnecting;
        if (online.value && !before) resend(matrix);
    });
    window.addEventListener("offline", () => (online.value = false));
    window.addEventListener("online", () => void matrix.retryImmediately());
    matrix.on("Session.logged_out" as any, () => void forget());
}

/** Sends again what could not be sent while the server was out of reach. */
function resend(matrix: MatrixClient): void {
    for (const room of matrix.getRooms()) {
        for (const event of room.getPendingEvents()) {
            if (event.status !== EventStatus.NOT_SENT || (event.error && !unreachable(event.error))) continue;
            matrix.resendEvent(event, room).catch((error) => console.warn("sent again in vain", error));
        }
    }
}

/** Secret storage asks for its key here; it is kept only while the page is open. */
let recovery: { id: string; key: Uint8Array<ArrayBuffer> } | undefined;

const secrets: CryptoCallbacks = {
    getSecretStorageKey: async ({ keys }) => {
        const id = Object.keys(keys).find((k) => k === recovery?.id) ?? Object.keys(keys)[0];
        return recovery ? [id, recovery.key] : null;
    },
    cacheSecretStorageKey: (id, _info, key) => {
        recovery = { id, key };
    },
};

/** Gives secret storage the key that the person typed. */
export function useRecoveryKey(id: string, key: Uint8Array<ArrayBuffer>): void {
    recovery = { id, key };
}

/** What else is kept on this device for the person, and goes when they sign out. */
const belongings: (() => Promise<void>)[] = [];

export function forgetWithSession(forget: () => Promise<void>): void {
    belongings.push(forget);
}

/** Signs this device out and forgets all it knew. */
export async function signOut(): Promise<void> {
    try {
        await client.value?.logout(true);
    } finally {
        await forget();
    }
}

async function forget(): Promise<void> {
    const matrix = client.value;
    forgetSession();
    matrix?.stopClient();
    for (const belonging of belongings) await belonging().catch((error) => console.warn("forget", error));
    await matrix?.clearStores();
    location.hash = "";
    location.reload(); // nothing of the session may stay in memory
}
