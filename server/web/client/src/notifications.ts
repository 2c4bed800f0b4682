import { signal } from "@preact/signals";
import { RoomEvent, type MatrixClient, type MatrixEvent, type Room } from "matrix-js-sdk";
import { duration } from "./i18n";
import { bodyOf, isMine, senderName, summary, voiceOf } from "./matrix/messages";
import { go } from "./route";

const storageKey = "parley.notifications";

/** Whether this person wants notifications on this device. */
export function wanted(): boolean {
    return localStorage.getItem(storageKey) === "yes" && Notification.permission === "granted";
}

/** Whether the person may be asked: the browser has not decided, and they have not either. */
export const askable = signal("Notification" in window && Notification.permission === "default" && localStorage.getItem(storageKey) === null);

/** Asks no more. */
export function putOff(): void {
    localStorage.setItem(storageKey, "no");
    askable.value = false;
}

/** Turns notifications on or off; false if the browser refuses. */
export async function want(on: boolean): Promise<boolean> {
    askable.value = false;
    if (on && (await Notification.requestPermission()) !== "granted") return false;
    localStorage.setItem(storageKey, on ? "yes" : "no");
    return true;
}

/** Notifies of what the push rules find worth it while the page is not in sight. Returns what ends it. */
export function watchNotifications(client: MatrixClient): () => void {
    const onEvent = (event: MatrixEvent, room: Room | undefined, _start: boolean | undefined, _removed: boolean, data: { liveEvent?: boolean }): void => {
        if (!room || !data.liveEvent || document.hasFocus() || isMine(event) || !("Notification" in window) || !wanted()) return;
        if (!client.getPushActionsForEvent(event)?.notify) return;
        const voice = voiceOf(event);
        const body = voice?.live ? summary(event) : voice ? `▶ ${duration(voice.duration)}${voice.transcript ? ` ${voice.transcript.text}` : ""}` : bodyOf(event);
        const notification = new Notification(`${senderName(event)} – ${room.name}`, { body, tag: room.roomId });
        notification.onclick = () => {
            window.focus();
            go({ page: "room", room: room.roomId, event: event.getId() });
        };
    };
    client.on(RoomEvent.Timeline, onEvent as any);
    return () => void client.off(RoomEvent.Timeline, onEvent as any);
}
