import LightningPruneLogic
import SwiftUI

/// Draw a digit: its class, the confidence and the milliseconds stand below.
struct PadScreen: View {
  @ObservedObject var program: ProgramModel
  @State private var drawing = Drawing()
  @State private var last: CGPoint?

  var body: some View {
    VStack(spacing: 24) {
      GeometryReader { geometry in
        let side = min(geometry.size.width, geometry.size.height)
        Canvas { context, size in paint(context, size) }
          .frame(width: side, height: side)
          .border(.secondary)
          .gesture(stroke(side: side))
          .accessibilityElement()
          .accessibilityIdentifier("pad")
      }
      .aspectRatio(1, contentMode: .fit)
      Text(program.answer).font(.title2.monospacedDigit()).accessibilityIdentifier("answer")
      Button("Clear") {
        drawing.clear()
        program.answer = ""
      }
      .buttonStyle(.bordered)
    }
    .padding()
  }

  private func paint(_ context: GraphicsContext, _ size: CGSize) {
    let cell = size.width / CGFloat(drawing.size)
    for (index, value) in drawing.image.values.enumerated() where value > 0 {
      let x = CGFloat(index % drawing.size) * cell
      let y = CGFloat(index / drawing.size) * cell
      // a little larger than the cell, so that no gaps show between neighbours
      let rectangle = CGRect(x: x, y: y, width: cell + 0.5, height: cell + 0.5)
      context.fill(Path(rectangle), with: .color(.primary.opacity(Double(value))))
    }
  }

  private func stroke(side: CGFloat) -> some Gesture {
    DragGesture(minimumDistance: 0)
      .onChanged { value in
        let here = CGPoint(x: value.location.x / side, y: value.location.y / side)
        let from = last ?? here
        drawing.line(fromX: Double(from.x), fromY: Double(from.y), toX: Double(here.x), toY: Double(here.y))
        last = here
      }
      .onEnded { _ in
        last = nil
        if !drawing.isEmpty { program.classify(drawing.framed()) }
      }
  }
}
