import { signal } from "@preact/signals";
import { ClientEvent, createClient, IndexedDBStore, PendingEventOrdering, SyncState, type MatrixClient } from "matrix-js-sdk";
import { CryptoEvent, type CryptoCallbacks } from "matrix-js-sdk/lib/crypto-api";

/** Where the person stands. */
export const phase = signal<"loading" | "signedOut" | "ready">("loading");
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

interface Credentials {
    userId: string;
    deviceId: string;
    accessToken: string;
}

const storageKey = "parley.session";
/** The homeserver is the one this page came from; the page's policy allows no other. */
const homeserver = location.origin;

/** The signed-in client, for code that only runs when there is one. */
export function me(): MatrixClient {
    if (!client.value) throw new Error("not signed in");
    return client.value;
}

/** Goes on with the stored session, or with a login token from the address (#token=…), or shows the sign-in page. */
export async function restore(): Promise<void> {
    const token = new URLSearchParams(location.hash.slice(1)).get("token");
    if (token) {
        history.replaceState(null, "", location.pathname); // nobody shall read it from the address again
        await signIn({ type: "m.login.token", token });
        return;
    }
    const stored = localStorage.getItem(storageKey);
    if (!stored) {
        phase.value = "signedOut";
        return;
    }
    await start(JSON.parse(stored) as Credentials);
}

/** Signs in with a password. */
export async function signInWithPassword(user: string, password: string): Promise<void> {
    await signIn({ type: "m.login.password", identifier: { type: "m.id.user", user }, password });
}

async function signIn(body: Record<string, unknown>): Promise<void> {
    const anonymous = createClient({ baseUrl: homeserver });
    const answer = await anonymous.loginRequest({ ...body, initial_device_display_name: deviceName() } as any);
    await keep(answer as any);
}

/** Creates an account with a registration token, where the server asks for one. */
export async function register(username: string, password: string, token: string): Promise<void> {
    const anonymous = createClient({ baseUrl: homeserver });
    const body: Record<string, unknown> = { username, password, initial_device_display_name: deviceName() };
    let session: string | undefined;
    // The server names the steps; each answer completes one of them.
    for (let step = 0; ; step++) {
        try {
            await keep((await anonymous.registerRequest(body as any)) as any);
            return;
        } catch (error: any) {
            const stages: string[] | undefined = error.data?.flows?.[0]?.stages;
            if (error.httpStatus !== 401 || !stages || step >= 4) throw error;
            if (error.data.errcode) throw error; // the last answer was refused
            session = error.data.session;
            const done: string[] = error.data.completed ?? [];
            const type = stages.find((stage) => !done.includes(stage)) ?? stages[0];
            body.auth = { type, session, ...(type === "m.login.registration_token" ? { token } : {}) };
        }
    }
}

async function keep(answer: { user_id: string; device_id: string; access_token: string }): Promise<void> {
    const credentials: Credentials = {
        userId: answer.user_id,
        deviceId: answer.device_id,
        accessToken: answer.access_token,
    };
    localStorage.setItem(storageKey, JSON.stringify(credentials));
    await start(credentials);
}

function deviceName(): string {
    const system = /Android|iPhone|iPad|Windows|Mac|Linux/.exec(navigator.userAgent)?.[0] ?? "";
    return `Parley (${system || "web"})`;
}

async function start(credentials: Credentials): Promise<void> {
    const { userId, deviceId, accessToken } = credentials;
    const store = new IndexedDBStore({ indexedDB: window.indexedDB, dbName: "parley", localStorage: window.localStorage });
    const matrix = createClient({
        baseUrl: homeserver,
        userId,
        deviceId,
        accessToken,
        store,
        timelineSupport: true,
        cryptoCallbacks: secrets,
    });
    await store.startup();
    try {
        await matrix.initRustCrypto();
    } catch (error) {
        console.warn("encryption is not available", error); // private windows have no place for keys
    }
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
    phase.value = "ready";
}

/** Keeps revision in step with whatever may change what is shown, at most once a frame. */
function watch(matrix: MatrixClient): void {
    let waiting = false;
    const changed = (): void => {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
            waiting = false;
            revision.value++;
        });
    };
    for (const event of [
        "Room", "Room.timeline", "Room.timelineReset", "Room.localEchoUpdated", "Room.receipt", "Room.name", "Room.myMembership",
        "Room.redaction", "RoomState.events", "RoomMember.typing", "Room.accountData", "accountData", "Event.decrypted", "Event.replaced",
        "deleteRoom", CryptoEvent.DevicesUpdated, CryptoEvent.UserTrustStatusChanged, CryptoEvent.KeysChanged,
    ]) {
        matrix.on(event as any, changed);
    }
    matrix.on(ClientEvent.Sync, (state) => {
        online.value = state !== SyncState.Error && state !== SyncState.Reconnecting;
    });
    matrix.on("Session.logged_out" as any, () => void forget());
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
    client.value = null;
    localStorage.removeItem(storageKey);
    matrix?.stopClient();
    await matrix?.clearStores();
    phase.value = "signedOut";
    location.reload(); // nothing of the session may stay in memory
}
