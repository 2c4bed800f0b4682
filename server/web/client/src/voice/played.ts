import { signal } from "@preact/signals";
import { ClientEvent, Method, RoomEvent, type MatrixClient, type MatrixEvent, type Room } from "matrix-js-sdk";
import { isMine, voiceOf } from "../matrix/messages";
import { me, revision } from "../matrix/session";
import { isLive } from "./live";

/** What the server keeps of one voice message for this person. docs/voice.md */
interface State {
    played?: boolean;
    /** Milliseconds into an unfinished one. */
    position?: number;
}

const prefix = "/_matrix/client/unstable/im.parley.voice";
const accountData = "im.parley.voice.played";
const playedBy = "im.parley.voice.played_by";
/** The account data with which a person lets senders know what they have played. */
export const receiptsData = "im.parley.voice.played_receipts";

/** Which voice messages this person has played, on any device, and where they stopped. */
class Played {
    #states = new Map<string, State>();
    #saving = new Map<string, { event: MatrixEvent; timer: number }>();
    /** Voice messages still to be heard, over all rooms, oldest first, as the server counts them. */
    readonly inbox = signal<{ total: number; events: MatrixEvent[] }>({ total: 0, events: [] });

    /** Who has played one's own messages, of those who let one know. */
    #by = new Map<string, Set<string>>();

    /** Who has played a message of one's own, as far as they let one know. */
    by(event: MatrixEvent): string[] {
        return [...(this.#by.get(event.getId() ?? "") ?? [])];
    }

    #learnBy(events: Record<string, Record<string, unknown>>): void {
        for (const [id, people] of Object.entries(events)) this.#by.set(id, new Set([...(this.#by.get(id) ?? []), ...Object.keys(people)]));
        revision.value++;
    }

    /** Asks who has played what in a room. */
    async loadBy(room: string): Promise<void> {
        const path = `/rooms/${encodeURIComponent(room)}/played_by`;
        const answer = await me().http.authedRequest<{ events: Record<string, Record<string, unknown>> }>(Method.Get, path, undefined, undefined, { prefix });
        this.#learnBy(answer.events);
    }

    /** Follows what other devices play. */
    watch(client: MatrixClient): void {
        client.on(ClientEvent.Event, (event: MatrixEvent) => {
            if (event.getType() === playedBy) this.#learnBy(event.getContent());
        });
        client.on(RoomEvent.AccountData, (event: MatrixEvent) => {
            if (event.getType() !== accountData) return;
            for (const [id, state] of Object.entries(event.getContent().events ?? {})) this.#states.set(id, state as State);
            revision.value++;
            void this.refreshInbox();
        });
        client.on(RoomEvent.Timeline, (event: MatrixEvent, _room: Room | undefined, _start: boolean | undefined, _removed: boolean, data) => {
            if (data?.liveEvent && (voiceOf(event) || event.isRelation("m.replace"))) void this.refreshInbox();
        });
        client.on(RoomEvent.Redaction, (redaction: MatrixEvent) => {
            const id = redaction.event.redacts ?? redaction.getContent().redacts;
            if (this.inbox.value.events.some((event) => event.getId() === id)) void this.refreshInbox();
        });
        client.once(ClientEvent.Sync, () => void this.refreshInbox());
    }

    #state(event: MatrixEvent): State {
        const unsigned = (event.getUnsigned() as Record<string, any>)["im.parley.voice"] ?? {};
        return { ...unsigned, ...this.#states.get(event.getId() ?? "") };
    }

    /** Whether a message needs no red dot. What one said oneself counts as heard. */
    isPlayed(event: MatrixEvent): boolean {
        return isMine(event) || this.#state(event).played === true;
    }

    /** Where an unfinished message goes on, in milliseconds. */
    position(event: MatrixEvent): number {
        return this.#state(event).position ?? 0;
    }

    markPlayed(event: MatrixEvent): void {
        this.#put(event, { played: true, position: 0 }, 0);
    }

    setPosition(event: MatrixEvent, position: number): void {
        this.#put(event, { ...this.#state(event), position: Math.round(position) }, 1000);
    }

    #put(event: MatrixEvent, state: State, delay: number): void {
        const id = event.getId();
        if (!id) return;
        this.#states.set(id, { played: state.played, position: state.position });
        revision.value++;
        clearTimeout(this.#saving.get(id)?.timer);
        this.#saving.set(id, { event, timer: window.setTimeout(() => void this.#save(event), delay) });
    }

    async #save(event: MatrixEvent): Promise<void> {
        const id = event.getId()!;
        this.#saving.delete(id);
        const path = `/rooms/${encodeURIComponent(event.getRoomId()!)}/played/${encodeURIComponent(id)}`;
        try {
            await me().http.authedRequest(Method.Put, path, undefined, { ...this.#states.get(id) }, { prefix });
        } catch (error) {
            console.warn("played state was not stored", error);
        }
        void this.refreshInbox();
    }

    async refreshInbox(): Promise<void> {
        const client = me();
        try {
            const answer = await client.http.authedRequest<{ total: number; events: any[] }>(Method.Get, "/inbox", { limit: "50" }, undefined, { prefix });
            const mapper = client.getEventMapper();
            // One that is still being spoken is the room's own, which learns when it is complete.
            const known = (event: MatrixEvent): MatrixEvent => (isLive(event) && client.getRoom(event.getRoomId())?.findEventById(event.getId()!)) || event;
            this.inbox.value = { total: answer.total, events: answer.events.map((raw) => known(mapper(raw))) };
        } catch (error) {
            console.warn("the voice inbox was not loaded", error);
        }
    }
}

export const played = new Played();
