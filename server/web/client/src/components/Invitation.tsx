import { useSignal } from "@preact/signals";
import type { Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { shortName } from "../matrix/messages";
import { problem } from "../matrix/problem";
import { followRevision, me } from "../matrix/session";
import { go } from "../route";
import { Avatar } from "./Avatar";

/** An invitation, to be accepted or declined. */
export function Invitation({ room }: { room: Room }) {
    followRevision();
    const busy = useSignal(false);
    const trouble = useSignal("");
    const inviter = room.getMember(me().getUserId()!)?.events.member?.getSender() ?? "";
    const name = shortName(room.getMember(inviter)?.name ?? inviter);
    async function answer(accept: boolean): Promise<void> {
        busy.value = true;
        trouble.value = "";
        try {
            if (accept) {
                await me().joinRoom(room.roomId);
                go({ page: "room", room: room.roomId });
            } else {
                await me().leave(room.roomId);
            }
        } catch (error) {
            trouble.value = problem(error);
        } finally {
            busy.value = false;
        }
    }
    return (
        <div class="row invitation">
            <Avatar name={room.name} id={room.roomId} />
            <span class="row-text">
                <strong dir="auto">{room.name}</strong>
                <span class="wrap">{t("rooms.invitedBy", { name })}</span>
                <small>{inviter}</small>
                <span class="buttons">
                    <button class="primary" disabled={busy.value} onClick={() => void answer(true)}>
                        {busy.value ? t("rooms.joining") : t("rooms.accept")}
                    </button>
                    <button disabled={busy.value} onClick={() => void answer(false)}>
                        {t("rooms.decline")}
                    </button>
                </span>
                {trouble.value && (
                    <span class="problem wrap" role="alert">
                        {trouble.value}
                    </span>
                )}
            </span>
        </div>
    );
}
