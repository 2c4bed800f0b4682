import { signal } from "@preact/signals";
import type { MatrixEvent } from "matrix-js-sdk";
import { me } from "./session";

/** What the next message refers to: an answer to one, or another text for one's own. */
export const composing = signal<{ mode: "reply" | "edit"; event: MatrixEvent } | null>(null);

/** The part of a message's content that makes it an answer. Spec v1.19 client-server-api/#rich-replies, #threading */
export function relation(): Record<string, unknown> {
    const target = composing.value?.mode === "reply" ? composing.value.event : undefined;
    if (!target) return { "m.mentions": {} };
    const reply = { "m.in_reply_to": { event_id: target.getId() } };
    const thread = target.threadRootId;
    return {
        "m.mentions": target.getSender() === me().getUserId() ? {} : { user_ids: [target.getSender()] },
        "m.relates_to": thread ? { rel_type: "m.thread", event_id: thread, is_falling_back: false, ...reply } : reply,
    };
}

/** Replaces the text of one's own message. Spec v1.19 client-server-api/#event-replacements */
export async function edit(event: MatrixEvent, body: string): Promise<void> {
    const changed = { msgtype: event.getContent().msgtype, body, "m.mentions": {} };
    const content = { ...changed, body: `* ${body}`, "m.new_content": changed, "m.relates_to": { rel_type: "m.replace", event_id: event.getId() } };
    await me().sendMessage(event.getRoomId()!, content as any);
}

export interface Reaction {
    key: string;
    count: number;
    /** One's own, if there is one. */
    mine: MatrixEvent | undefined;
    who: string[];
}

export function reactionsTo(event: MatrixEvent): Reaction[] {
    const room = me().getRoom(event.getRoomId());
    const relations = room?.relations.getChildEventsForEvent(event.getId()!, "m.annotation", "m.reaction");
    return (relations?.getSortedAnnotationsByKey() ?? [])
        .map(([key, events]) => {
            const all = [...events].filter((e) => !e.isRedacted());
            return { key, count: all.length, mine: all.find((e) => e.getSender() === me().getUserId()), who: all.map((e) => e.sender?.name ?? e.getSender()!) };
        })
        .filter((reaction) => reaction.count > 0);
}

/** Reacts to a message, or takes the same reaction back. */
export async function react(event: MatrixEvent, key: string): Promise<void> {
    const mine = reactionsTo(event).find((reaction) => reaction.key === key)?.mine;
    if (mine) await me().redactEvent(event.getRoomId()!, mine.getId()!);
    else await me().sendEvent(event.getRoomId()!, "m.reaction" as any, { "m.relates_to": { rel_type: "m.annotation", event_id: event.getId(), key } } as any);
}
