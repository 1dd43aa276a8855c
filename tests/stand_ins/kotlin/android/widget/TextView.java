package android.widget;

public class TextView extends android.view.View {
    public TextView(android.content.Context context) { super(context); }
    public final void setText(CharSequence text) { }
    public CharSequence getText() { return ""; }
    public void setTextSize(float size) { }
    public float getTextSize() { return 0; }
}
