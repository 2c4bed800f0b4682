import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { IMyDevice } from "matrix-js-sdk";
import { day, language, languages, setLanguage, t, time } from "../i18n";
import { problem } from "../matrix/problem";
import { sensitive } from "../matrix/sensitive";
import { me, followRevision, signOut } from "../matrix/session";
import { want, wanted } from "../notifications";
import { receiptsData } from "../voice/played";
import { Colleagues } from "./Colleagues";
import { CopyButton } from "./CopyButton";
import { Password } from "./Password";
import { confirmed } from "./Questions";
import { PageHeader } from "./PageHeader";
import { QrCode } from "./QrCode";
import { Security } from "./Security";

/** Signs out, after a word about what is lost where keys are not backed up. */
async function leave(): Promise<void> {
    const safe = !me().getCrypto() || (await me().getCrypto()!.isSecretStorageReady().catch(() => false));
    const text = safe ? t("settings.signOutText") : t("settings.signOutUnsafe");
    if (await confirmed({ title: t("settings.signOut"), text, yes: t("settings.signOut"), danger: !safe })) await signOut();
}

export function Settings() {
    followRevision();
    return (
        <>
            <PageHeader title={t("settings.title")} />
            <div class="scroll settings">
                <Profile />
                <Colleagues />
                <Devices />
                <Security />
                <Password />
                <section>
                    <h2>{t("settings.language")}</h2>
                    <div class="buttons">
                        {Object.entries(languages).map(([code, texts]) => (
                            <button lang={code} aria-pressed={language.value === code} onClick={() => setLanguage(code)}>
                                {texts.language}
                            </button>
                        ))}
                    </div>
                    <Notifications />
                    <Choice type="im.parley.voice.transcripts" standard={true}>
                        {t("settings.transcripts")}
                    </Choice>
                    <Choice type={receiptsData} standard={false}>
                        {t("settings.playedReceipts")}
                    </Choice>
                </section>
                <section>
                    <button class="danger" onClick={() => void leave()}>
                        {t("settings.signOut")}
                    </button>
                </section>
            </div>
        </>
    );
}

function Profile() {
    const user = me().getUserId()!;
    const saved = useSignal(me().getUser(user)?.displayName ?? "");
    const said = useSignal("");
    const typed = useRef(false);
    useEffect(() => {
        const known = (profile: { displayname?: string }): void => {
            if (!typed.current) saved.value = profile.displayname ?? ""; // it would take the place of what somebody is typing
        };
        me().getProfileInfo(user).then(known, () => undefined);
    }, []);
    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const name = String(new FormData(event.currentTarget as HTMLFormElement).get("name") ?? "").trim();
        try {
            await me().setDisplayName(name);
            saved.value = name;
            said.value = t("settings.saved");
        } catch (error) {
            said.value = problem(error);
        }
    }
    return (
        <section>
            <h2>{t("settings.profile")}</h2>
            <form class="inline" onSubmit={submit}>
                <label>
                    {t("settings.name")}
                    <input name="name" value={saved.value} maxLength={100} autocomplete="name" onInput={() => (typed.current = true)} />
                </label>
                <button>{t("app.save")}</button>
            </form>
            <p role="status">{said.value}</p>
            <p>
                {t("settings.address")}: <code>{user}</code> <CopyButton text={user} />
            </p>
        </section>
    );
}

function Devices() {
    const devices = useSignal<IMyDevice[]>([]);
    const code = useSignal("");
    const trouble = useSignal("");
    const load = async (): Promise<void> => {
        devices.value = (await me().getDevices()).devices.sort((a, b) => (b.last_seen_ts ?? 0) - (a.last_seen_ts ?? 0));
    };
    useEffect(() => void load().catch((error) => (trouble.value = problem(error))), []);

    async function run(what: () => Promise<void>): Promise<void> {
        trouble.value = "";
        try {
            await what();
        } catch (error) {
            trouble.value = problem(error);
        }
    }

    /** A link that carries a login token: whoever opens it within two minutes is signed in as this person. */
    const addDevice = (): Promise<void> =>
        run(async () => {
            const answer = await sensitive(t("settings.addDevice"), (auth) => me().requestLoginToken(auth ?? undefined));
            if (answer) code.value = `${location.origin}${location.pathname}#token=${encodeURIComponent(answer.login_token)}`;
        });

    const remove = (device: IMyDevice): Promise<void> =>
        run(async () => {
            await sensitive(t("settings.signOutDevice", { name: device.display_name || device.device_id }), (auth) => me().deleteDevice(device.device_id, auth ?? undefined));
            await load();
        });

    return (
        <section>
            <h2>{t("settings.devices")}</h2>
            <ul class="devices">
                {devices.value.map((device) => (
                    <li key={device.device_id} title={device.device_id}>
                        <span class="row-text">
                            <strong>{device.display_name || device.device_id}</strong>
                            <span>
                                {device.device_id === me().getDeviceId()
                                    ? t("settings.thisDevice")
                                    : device.last_seen_ts
                                      ? t("settings.lastSeen", { when: `${day(device.last_seen_ts)} ${time(device.last_seen_ts)}` })
                                      : device.device_id}
                            </span>
                        </span>
                        {device.device_id !== me().getDeviceId() && (
                            <button aria-label={t("settings.signOutDevice", { name: device.display_name || device.device_id })} onClick={() => void remove(device)}>
                                {t("settings.signOut")}
                            </button>
                        )}
                    </li>
                ))}
            </ul>
            {code.value ? (
                <figure class="code">
                    <QrCode text={code.value} />
                    <figcaption>{t("settings.addDeviceHelp")}</figcaption>
                    <a href={code.value} onClick={(e) => e.preventDefault()} class="visually-hidden" id="device-link">
                        {t("settings.addDevice")}
                    </a>
                    <div class="buttons">
                        <CopyButton text={code.value} />
                        <button onClick={() => (code.value = "")}>{t("app.close")}</button>
                    </div>
                </figure>
            ) : (
                <button onClick={() => void addDevice()}>{t("settings.addDevice")}</button>
            )}
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
        </section>
    );
}

function Notifications() {
    const on = useSignal("Notification" in window && wanted());
    const refused = useSignal(false);
    if (!("Notification" in window)) return null;
    async function change(checked: boolean): Promise<void> {
        refused.value = !(await want(checked));
        on.value = wanted();
    }
    return (
        <>
            <label class="switch">
                <input type="checkbox" checked={on.value} onChange={(e) => void change(e.currentTarget.checked)} />
                {t("settings.notifications")}
            </label>
            {refused.value && <p class="hint">{t("settings.notificationsDenied")}</p>}
        </>
    );
}

/** A choice that the server acts on, kept in the account data as {"enabled": …}. docs/voice.md */
function Choice({ type, standard, children }: { type: string; standard: boolean; children: string }) {
    followRevision();
    const trouble = useSignal("");
    /** What was just chosen, until the server has it: otherwise the next thing that happens would show the old choice again. */
    const chosen = useSignal<boolean | undefined>(undefined);
    const enabled = chosen.value ?? me().getAccountData(type as any)?.getContent().enabled ?? standard;
    async function choose(enabled: boolean): Promise<void> {
        chosen.value = enabled;
        trouble.value = "";
        try {
            await me().setAccountData(type as any, { enabled } as any);
        } catch (error) {
            trouble.value = problem(error);
        } finally {
            if (chosen.value === enabled) chosen.value = undefined;
        }
    }
    return (
        <>
            <label class="switch">
                <input
                    type="checkbox"
                    checked={enabled}
                    onChange={(e) => void choose(e.currentTarget.checked)}
                />
                {children}
            </label>
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
        </>
    );
}
