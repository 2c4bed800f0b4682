import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { IMyDevice } from "matrix-js-sdk";
import { language, languages, setLanguage, t } from "../i18n";
import { me, followRevision, revision, signOut } from "../matrix/session";
import { want, wanted } from "../notifications";
import { PageHeader } from "./PageHeader";
import { QrCode } from "./QrCode";
import { Security } from "./Security";

export function Settings() {
    followRevision();
    return (
        <>
            <PageHeader title={t("settings.title")} />
            <div class="scroll settings">
                <Profile />
                <Devices />
                <Security />
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
                </section>
                <section>
                    <button class="danger" onClick={() => void signOut()}>
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
    useEffect(() => {
        me().getProfileInfo(user).then((p) => (saved.value = p.displayname ?? ""), () => undefined);
    }, []);
    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const name = String(new FormData(event.currentTarget as HTMLFormElement).get("name") ?? "").trim();
        await me().setDisplayName(name);
        saved.value = name;
    }
    return (
        <section>
            <h2>{t("settings.profile")}</h2>
            <form class="inline" onSubmit={submit}>
                <label>
                    {t("settings.name")}
                    <input name="name" value={saved.value} maxLength={100} autocomplete="name" />
                </label>
                <button>{t("app.save")}</button>
            </form>
            <p>
                {t("settings.address")}: <code>{user}</code>
            </p>
        </section>
    );
}

function Devices() {
    const devices = useSignal<IMyDevice[]>([]);
    const code = useSignal("");
    const load = async (): Promise<void> => {
        devices.value = (await me().getDevices()).devices;
    };
    useEffect(() => void load().catch((error) => console.warn("devices", error)), [revision.value]);

    /** A link that carries a login token: whoever opens it within two minutes is signed in as this person. */
    async function addDevice(): Promise<void> {
        try {
            const { login_token: token } = await me().requestLoginToken();
            code.value = `${location.origin}${location.pathname}#token=${encodeURIComponent(token)}`;
        } catch (error: any) {
            const password = error.httpStatus === 401 && prompt(t("login.password"));
            if (!password) return;
            const auth = { type: "m.login.password", identifier: { type: "m.id.user", user: me().getUserId() }, password, session: error.data.session };
            const { login_token: token } = await me().requestLoginToken(auth as any);
            code.value = `${location.origin}${location.pathname}#token=${encodeURIComponent(token)}`;
        }
    }

    async function remove(device: IMyDevice): Promise<void> {
        try {
            await me().deleteDevice(device.device_id);
        } catch (error: any) {
            const password = error.httpStatus === 401 && prompt(t("login.password"));
            if (!password) return;
            const auth = { type: "m.login.password", identifier: { type: "m.id.user", user: me().getUserId() }, password, session: error.data.session };
            await me().deleteDevice(device.device_id, auth as any);
        }
        await load();
    }

    return (
        <section>
            <h2>{t("settings.devices")}</h2>
            <ul class="devices">
                {devices.value.map((device) => (
                    <li key={device.device_id}>
                        <span class="row-text">
                            <strong>{device.display_name || device.device_id}</strong>
                            <span>{device.device_id === me().getDeviceId() ? t("settings.thisDevice") : device.device_id}</span>
                        </span>
                        {device.device_id !== me().getDeviceId() && (
                            <button onClick={() => void remove(device)}>{t("settings.signOutDevice", { name: "" })}</button>
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
                    <button onClick={() => void navigator.clipboard.writeText(code.value)}>{t("app.copy")}</button>
                    <button onClick={() => (code.value = "")}>{t("app.close")}</button>
                </figure>
            ) : (
                <button onClick={() => void addDevice()}>{t("settings.addDevice")}</button>
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
