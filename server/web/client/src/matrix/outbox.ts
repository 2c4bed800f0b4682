import { signal } from "@preact/signals";
import { ClientEvent, EventStatus, type Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { finishLive, notice, passing, remove, takeBack, type Live } from "../voice/live";
import { upload } from "./attachments";
import { problem, retryAfter, unreachable } from "./problem";
import { forgetWithSession, me, online } from "./session";

/** A recording or a file on its way. */
export interface Outgoing {
    /** Also the transaction that sends it, so that it is never sent twice. */
    id: string;
    room: string;
    blob: Blob;
    name: string;
    /** The event, but for the reference to the file. */
    content: Record<string, unknown>;
    /** The file in the server's keeping, once it is there. */
    reference?: Record<string, unknown>;
    at: number;
    /** Waiting: it goes on by itself. Failed: the person has to say what to do. */
    state: "sending" | "waiting" | "failed";
    problem?: string;
    /** Whether the timeline shows it as an event by now. */
    shown?: boolean;
    /** The part of the file that has been uploaded, 0 to 1. */
    progress?: number;
    /** Set if others could listen while it was recorded: the server has its event, and a part of it. */
    live?: Live;
    /** Set if nothing is to be sent: what others could listen to is to be taken back. */
    takenBack?: boolean;
    /** A live message that was cut off. It goes when this one, which has all of it, is there. */
    replaces?: string;
}

/** What there is to know of a recording that others could listen to. */
export interface Spoken {
    live?: Live;
    replaces?: string;
    /** When nothing of it is under way to the server any more. */
    settled?: Promise<void>;
}

const table = "outgoing";

function database(): Promise<IDBDatabase> {
    return new Promise((resolve, reject) => {
        const opening = indexedDB.open("parley-outbox", 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore(table, { keyPath: "id" });
        opening.onsuccess = () => resolve(opening.result);
        opening.onerror = () => reject(opening.error);
    });
}

/**
 * What was recorded or attached, until the server has it: kept in the browser's database from the moment it is made, so that neither
 * a failure nor a reload loses it.
 */
class Outbox {
    readonly items = signal<Outgoing[]>([]);
    #database: Promise<IDBDatabase> | undefined;

    /** Takes up what an earlier visit has left, and goes on whenever the server is back. */
    async watch(): Promise<void> {
        forgetWithSession(() => this.#store<void>((all) => all.clear()));
        const goOn = (of: (item: Outgoing) => boolean): void => {
            for (const item of this.items.value) if (item.state === "waiting" && of(item)) void this.#send(item);
        };
        online.subscribe((reachable) => reachable && goOn(() => true));
        me().on(ClientEvent.Room, (room) => goOn((item) => item.room === room.roomId));
        try {
            const left = await this.#store<Outgoing[]>((all) => all.getAll());
            const known = new Set(this.items.value.map((item) => item.id));
            this.items.value = [...left.filter((item) => !known.has(item.id)), ...this.items.value].sort((a, b) => a.at - b.at);
            for (const item of left) if (!known.has(item.id) && item.state !== "failed") void this.#send(item);
        } catch (error) {
            console.warn("what was left to send is not known", error); // a private window
        }
    }

    /** Sends a file with what an event says of it. Does not fail: what goes wrong is shown with the item. */
    async send(room: Room, blob: Blob, name: string, content: Record<string, unknown>, { live, replaces, settled }: Spoken = {}): Promise<void> {
        await this.#add({ ...this.#item(room.roomId), blob, name, content, live, replaces, shown: !!live?.event }, settled);
    }

    /** Takes back what others could listen to, as soon as the server can be reached. */
    async takeBack(live: Live, settled: Promise<void>): Promise<void> {
        await this.#add({ ...this.#item(live.room), live, takenBack: true }, settled);
    }

    #item(room: string): Outgoing {
        return { id: me().makeTxnId(), room, blob: new Blob(), name: "", content: {}, at: Date.now(), state: "sending" };
    }

    async #add(item: Outgoing, settled: Promise<void> | undefined): Promise<void> {
        this.items.value = [...this.items.value, item];
        const kept = this.#keep(item);
        await settled;
        await this.#send(item);
        await kept;
    }

    /** What is to be shown at the end of a room's messages. */
    in(room: string): Outgoing[] {
        return this.items.value.filter((item) => item.room === room && !item.shown && !item.takenBack);
    }

    retry(item: Outgoing): void {
        void this.#send(item);
    }

    discard(item: Outgoing): void {
        this.items.value = this.items.value.filter((other) => other.id !== item.id);
        void this.#store((all) => all.delete(item.id)).catch((error) => console.warn("forget what was to be sent", error));
    }

    #change(item: Outgoing, change: Partial<Outgoing>): void {
        Object.assign(item, change);
        this.items.value = [...this.items.value];
    }

    async #send(item: Outgoing): Promise<void> {
        const room = me().getRoom(item.room);
        if (!room) {
            this.#change(item, { state: "waiting" }); // the first sync will bring it, or it was left
            return;
        }
        this.#change(item, { state: "sending", problem: undefined });
        try {
            if (item.live && (await this.#goOn(item, item.live))) {
                this.discard(item);
                return;
            }
            if (!item.reference) {
                const progress = item.blob.size > 500_000 ? (done: number) => this.#change(item, { progress: done }) : undefined;
                this.#change(item, { reference: await upload(me(), item.blob, item.name, room.hasEncryptionStateEvent(), progress) });
                void this.#keep(item);
            }
            const sending = me().sendMessage(item.room, { ...item.content, ...item.reference } as any, item.id);
            this.#change(item, { shown: true });
            await sending;
            this.discard(item);
            if (item.replaces) await remove(item.room, item.replaces).catch((error) => console.warn("what was cut off stays", error));
        } catch (error) {
            this.#failed(item, room, error);
        }
    }

    /**
     * Gives the server the rest of what others could listen to, or takes it back. False if the server takes no more of it: then the whole
     * is to be sent as an ordinary message.
     */
    async #goOn(item: Outgoing, live: Live): Promise<boolean> {
        try {
            if (item.takenBack) await takeBack(live);
            else {
                this.#change(item, { shown: !!live.event });
                await finishLive(live, item.blob);
            }
            return true;
        } catch (error: any) {
            if (passing(error)) throw error;
            console.warn("a live message was not finished", error);
            if (item.takenBack) {
                notice.value = { room: item.room, text: t("live.notTakenBack", { reason: problem(error) }) };
                return true;
            }
            if (error.httpStatus === 413) {
                notice.value = { room: item.room, text: t("live.full") };
                return true; // what fits is there
            }
            notice.value = { room: item.room, text: t("live.sentWhole") };
            this.#change(item, { live: undefined, replaces: live.event, shown: false });
            void this.#keep(item);
            return false;
        }
    }

    #failed(item: Outgoing, room: Room, error: any): void {
        console.warn("not sent", error);
        for (const event of room.getPendingEvents()) {
            if (event.getTxnId() === item.id && event.status === EventStatus.NOT_SENT) me().cancelPendingEvent(event);
        }
        const seconds = retryAfter(error);
        const later = seconds !== undefined || unreachable(error);
        this.#change(item, { shown: false, progress: undefined, state: later ? "waiting" : "failed", problem: problem(error) });
        void this.#keep(item);
        if (later) setTimeout(() => this.items.value.includes(item) && item.state === "waiting" && void this.#send(item), (seconds ?? 10) * 1000);
    }

    async #keep(item: Outgoing): Promise<void> {
        try {
            const { shown: _, progress: __, ...kept } = item;
            if (this.items.value.includes(item)) await this.#store((all) => all.put(kept));
        } catch (error) {
            console.warn("what is to be sent is kept in memory only", error);
        }
    }

    async #store<T>(run: (all: IDBObjectStore) => IDBRequest<any>): Promise<T> {
        this.#database ??= database();
        const all = (await this.#database).transaction(table, "readwrite").objectStore(table);
        const asked = run(all);
        return new Promise((resolve, reject) => {
            asked.onsuccess = () => resolve(asked.result as T);
            asked.onerror = () => reject(asked.error);
        });
    }
}

export const outbox = new Outbox();
