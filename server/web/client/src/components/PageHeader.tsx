import { t } from "../i18n";
import { href } from "../route";
import { Icon } from "./Icon";

/** The head of a page, with the way back to the list on a phone. */
export function PageHeader({ title }: { title: string }) {
    return (
        <header class="page-header">
            <a class="round back" href={href({ page: "none" })} aria-label={t("app.back")}>
                <Icon name="back" />
            </a>
            <div class="page-title">
                <h1>{title}</h1>
            </div>
        </header>
    );
}
