import { useSignal } from "@preact/signals";
import { Preset, type ICreateRoomOpts } from "matrix-js-sdk";
import { t } from "../i18n";
import { conversationWith, type Person } from "../matrix/people";
import { problem } from "../matrix/problem";
import { me } from "../matrix/session";
import { go, href } from "../route";
import { Icon } from "./Icon";
import { PageHeader } from "./PageHeader";
import { PeoplePicker } from "./PeoplePicker";

/** Starts a conversation with one or more people, of this company or another. */
export function NewConversation() {
    const people = useSignal<Person[]>([]);
    const encrypted = useSignal(false);
    const busy = useSignal(false);
    const trouble = useSignal("");
    const existing = people.value.length === 1 ? conversationWith(people.value[0].user) : undefined;

    async function create(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const name = String(new FormData(event.currentTarget as HTMLFormElement).get("name") ?? "").trim();
        busy.value = true;
        trouble.value = "";
        try {
            const direct = people.value.length === 1 && !name;
            const options: ICreateRoomOpts = {
                preset: direct ? Preset.TrustedPrivateChat : Preset.PrivateChat,
                is_direct: direct,
                invite: people.value.map((p) => p.user),
                ...(name ? { name } : {}),
                initial_state: encrypted.value
                    ? [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }]
                    : [],
            };
            const { room_id: room } = await me().createRoom(options);
            if (direct) await markDirect(room, people.value[0].user);
            go({ page: "room", room });
        } catch (error) {
            trouble.value = problem(error);
        } finally {
            busy.value = false;
        }
    }

    return (
        <>
            <PageHeader title={t("new.title")} />
            <form class="form" onSubmit={create}>
                {people.value.length > 0 && (
                    <ul class="chips" aria-label={t("new.chosen")}>
                        {people.value.map((p) => (
                            <li key={p.user} title={p.user}>
                                <span dir="auto">{p.name}</span>
                                <button
                                    type="button"
                                    class="round small"
                                    aria-label={t("new.remove", { name: p.name })}
                                    onClick={() => (people.value = people.value.filter((other) => other !== p))}
                                >
                                    <Icon name="close" />
                                </button>
                            </li>
                        ))}
                    </ul>
                )}
                <PeoplePicker
                    label={people.value.length === 0 ? t("new.people") : t("new.morePeople")}
                    without={people.value.map((p) => p.user)}
                    onPick={(person) => (people.value = [...people.value, person])}
                />
                {existing && (
                    <p class="hint" role="status">
                        {t("new.exists", { name: people.value[0].name })} <a href={href({ page: "room", room: existing })}>{t("new.openExisting")}</a>
                    </p>
                )}
                {people.value.length > 0 && (
                    <>
                        <label>
                            {t("new.name")}
                            <input name="name" autocomplete="off" maxLength={100} dir="auto" />
                        </label>
                        {me().getCrypto() && (
                            <>
                                <label class="switch">
                                    <input
                                        type="checkbox"
                                        checked={encrypted.value}
                                        onChange={(e) => (encrypted.value = e.currentTarget.checked)}
                                        aria-describedby="encrypt-cost"
                                    />
                                    {t("new.encrypt")}
                                </label>
                                <p class="hint" id="encrypt-cost">
                                    {t("new.encryptCost")}
                                </p>
                            </>
                        )}
                    </>
                )}
                {trouble.value && (
                    <p class="problem" role="alert">
                        {trouble.value}
                    </p>
                )}
                <button class="primary" disabled={busy.value || people.value.length === 0}>
                    {busy.value ? t("new.creating") : t("new.create")}
                </button>
            </form>
        </>
    );
}

/** Notes that a room is a conversation of two. Spec v1.19 client-server-api/#mdirect */
async function markDirect(room: string, user: string): Promise<void> {
    const direct: Record<string, string[]> = { ...(me().getAccountData("m.direct" as any)?.getContent() ?? {}) };
    direct[user] = [...(direct[user] ?? []), room];
    await me().setAccountData("m.direct" as any, direct as any);
}
