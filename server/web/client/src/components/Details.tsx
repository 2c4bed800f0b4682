import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { t } from "../i18n";
import { shortName } from "../matrix/messages";
import { problem } from "../matrix/problem";
import { followRevision, me } from "../matrix/session";
import { go } from "../route";
import { Avatar } from "./Avatar";
import { PeoplePicker } from "./PeoplePicker";
import { confirmed } from "./Questions";

const transcriptsEvent = "im.parley.voice.transcripts";

/** Who is in a conversation, and what can be changed about it. */
export function Details({ room }: { room: Room }) {
    followRevision();
    const inviting = useSignal(false);
    const trouble = useSignal("");
    const user = me().getUserId()!;
    const may = (type: string): boolean => room.currentState.maySendStateEvent(type, user);
    useEffect(() => void room.loadMembersIfNeeded().catch((error) => console.warn("members", error)), [room]);

    async function run(what: () => Promise<unknown>): Promise<void> {
        trouble.value = "";
        try {
            await what();
        } catch (error) {
            trouble.value = problem(error);
        }
    }
    async function leave(): Promise<void> {
        if (!(await confirmed({ title: t("room.leave"), text: t("room.leaveConfirm"), yes: t("room.leave"), danger: true }))) return;
        await run(async () => {
            await me().leave(room.roomId);
            go({ page: "none" });
        });
    }
    async function encrypt(): Promise<void> {
        if (!(await confirmed({ title: t("new.encrypt"), text: `${t("new.encryptCost")} ${t("room.encryptForever")}`, yes: t("room.encryptNow") }))) return;
        await run(() => me().sendStateEvent(room.roomId, "m.room.encryption" as any, { algorithm: "m.megolm.v1.aes-sha2" } as any, ""));
    }

    const people = room
        .getMembers()
        .filter((m) => m.membership === "join" || m.membership === "invite")
        .sort((a, b) => a.name.localeCompare(b.name));
    const encrypted = room.hasEncryptionStateEvent();
    const transcribed = room.currentState.getStateEvents(transcriptsEvent, "")?.getContent().enabled !== false;
    return (
        <section class="details" aria-label={t("room.info")}>
            <ul class="people">
                {people.slice(0, 200).map((member) => (
                    <li key={member.userId}>
                        <Avatar name={shortName(member.name)} id={member.userId} />
                        <span class="row-text">
                            <strong dir="auto">{shortName(member.rawDisplayName || member.userId)}</strong>
                            <span>
                                {member.userId}
                                {member.membership === "invite" ? ` · ${t("room.isInvited")}` : ""}
                            </span>
                        </span>
                    </li>
                ))}
            </ul>
            {inviting.value && (
                <PeoplePicker
                    label={t("room.invite")}
                    without={people.map((member) => member.userId)}
                    onPick={(person) => void run(() => me().invite(room.roomId, person.user)).then(() => (inviting.value = false))}
                />
            )}
            {!encrypted && (
                <label class="switch">
                    <input
                        type="checkbox"
                        checked={transcribed}
                        disabled={!may(transcriptsEvent)}
                        onChange={(e) => {
                            const enabled = e.currentTarget.checked;
                            void run(() => me().sendStateEvent(room.roomId, transcriptsEvent as any, { enabled } as any, ""));
                        }}
                    />
                    {t("room.transcripts")}
                </label>
            )}
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
            <div class="buttons">
                <button aria-expanded={inviting.value} onClick={() => (inviting.value = !inviting.value)}>
                    {t("room.invite")}
                </button>
                {!encrypted && me().getCrypto() && may("m.room.encryption") && <button onClick={() => void encrypt()}>{t("new.encrypt")}</button>}
                <button class="danger" onClick={() => void leave()}>
                    {t("room.leave")}
                </button>
            </div>
        </section>
    );
}
